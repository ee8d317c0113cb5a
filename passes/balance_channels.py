"""What products read is divided by the factors of its channels that calibration has found.

x W^T = (x / s) (W diag(s))^T with s [K] > 0: activations and weights share what makes a channel
hard to quantize (SmoothQuant, Xiao et al. 2022; AWQ, Lin et al. 2023). The weight gets its part
where it is encoded (`Encoding.weight`). Rows are divided

1. by the gains of the norm that makes them, where it has some: for nothing. Others that read these
   rows keep the norm as it was;
2. else by a multiplication with 1 / s, which is fused with the loops around it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.constant_values import derived, is_constant, weight
from .loops.generics import is_elementwise
from .loops.row_loops import over_rows
from .patterns.norm_chain import match_norm
from .quantization.product_encodings import (
    conv_encoding,
    matmul_encoding,
    node_of,
    table_schemes,
    unbalanced,
)


@dataclass
class _Readers:
    """Products that read `x` times the same `inverse` [K] of their factors."""

    x: ir.Value
    inverse: np.ndarray
    products: list[ir.Operation] = field(default_factory=list)

    @property
    def tag(self) -> str:
        return f"balance {hashlib.sha256(self.inverse.tobytes()).hexdigest()[:32]}"

    @property
    def are_all(self) -> bool:
        """Whether nothing else reads `x`."""
        others = [user for user in users(self.x) if user.name != "tensor.dim"]
        return all(user in self.products for user in others)

    def inverse_row(self, unit: Unit) -> ir.Value:
        if self.tag not in unit.store:
            unit.store.add(self.tag, self.inverse)
        return weight(self.tag, [len(self.inverse)])

    def divided(self, gain: ir.Value, unit: Unit) -> ir.Value:
        """A constant [K] divided by the factors."""
        return derived(gain, self.tag, lambda array: array * self.inverse, unit.store)


@register
def balance_channels(module: ir.Operation, unit: Unit) -> None:
    """Divide what products read by the factors that calibration has found for them."""
    for readers in _readers(module, unit):
        divided = _by_gains(readers, unit) or _by_loop(readers, unit)
        for product in readers.products:
            product.operands[0] = divided


def _readers(module: ir.Operation, unit: Unit) -> list[_Readers]:
    tables = table_schemes(module, unit)
    found: dict[tuple[ir.Value, str], _Readers] = {}
    for op in walk(module, "abq.matmul"):
        encoding = matmul_encoding(op, tables, unit)
        if encoding is None:
            continue
        why = unbalanced(op, encoding, unit)
        if why is not None:
            per_channel = unit.recipe.resolve(node_of(op), "matmul").per_channel
            lacks = "has one static scale for all channels" if per_channel else "is not balanced"
            unit.refuse(node_of(op), f"{lacks}: {why}")
        if encoding.balance not in unit.store:
            continue
        factors = unit.store.get(encoding.balance).astype(np.float64)
        readers = _Readers(op.opview.x, (1 / factors).astype(np.float32))
        found.setdefault((readers.x, readers.tag), readers).products.append(op)
    for op in walk(module, "abq.conv"):
        per_channel = unit.recipe.resolve(node_of(op), "conv").per_channel
        if per_channel and conv_encoding(op, unit) is not None:
            why = "it is a convolution; write a8:tensor for it"
            unit.refuse(node_of(op), f"has one static scale for all channels: {why}")
    return list(found.values())


def _by_gains(readers: _Readers, unit: Unit) -> ir.Value | None:
    """The rows of a norm like the one that makes them, with other gains; None if no norm does."""
    op = defining_op(readers.x)
    if op is None:
        return None
    if op.name == "abq.norm" and op.results[0] == readers.x:
        return _named_norm(op, readers, unit)
    norm = match_norm(op) if is_elementwise(op) else None
    if norm is None or norm.weight is None:
        return None  # a multiplication becomes the gain
    gains = [value for value in (norm.weight, norm.bias) if value is not None]
    if not all(map(_is_row, gains)):
        return None
    with ir.InsertionPoint(op), op.location:
        divided = {value: readers.divided(value, unit) for value in gains}
        changed = op if readers.are_all else op.clone()
        for number, value in enumerate(op.operands):
            changed.operands[number] = divided.get(value, value)
    return changed.results[0]


def _named_norm(op: ir.Operation, readers: _Readers, unit: Unit) -> ir.Value | None:
    view = op.opview
    if not all(_is_row(value) for value in (view.weight, view.bias) if value is not None):
        return None
    with ir.InsertionPoint(op), op.location:
        if view.weight is None:
            gain = readers.inverse_row(unit)
        else:
            gain = readers.divided(view.weight, unit)
        new = abq.NormOp(
            view.x,
            view.kind,
            view.epsilon,
            view.result.type,
            view.sum.type,
            residual=view.residual,
            weight=gain,
            bias=None if view.bias is None else readers.divided(view.bias, unit),
        )
    if readers.are_all:
        op.results[1].replace_all_uses_with(new.sum)
    return new.result


def _is_row(value: ir.Value) -> bool:
    return is_constant(value) and isinstance(abq.element(value), ir.F32Type)


def _by_loop(readers: _Readers, unit: Unit) -> ir.Value:
    """The product of the rows and the inverse factors."""
    first = readers.products[0]
    with ir.InsertionPoint(first), first.location:
        columns = [readers.inverse_row(unit)]
        return over_rows([readers.x], lambda e: arith.MulFOp(e[0], e[1]).result, columns=columns)
