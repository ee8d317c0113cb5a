"""Integers from one quantization to the next: the floats between codes go.

`quantize` has left, at each value that an integer-only graph has as codes, an `abq.quantize` with
one static scale and an `abq.dequantize` behind it. Backwards from each quantization this finds what
computes its codes from other codes (docs/numerics.md, "Integer-only graphs"):

1. moves of elements, windows' maxima: the same on bytes;
2. a matmul or convolution of codes, with or without Relu or Clip: int32 accumulators, rescaled;
3. sums, differences and products of two tensors, sums over windows: rescaled;
4. any function of one element: a table of 256 bytes.

What is computed otherwise stays an island of floats, and is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from abqc.dialects import abq, fixed_point
from abqc.dialects.fixed_point import StaticCodes
from abqc.dialects.mlir import ir
from abqc.dialects.schemes import parse_scheme

from .infrastructure import Unit, defining_op, is_used, node_name, register, walk
from .integers.forms import BinaryForm, Bounds, FunctionForm, ProductForm, SumForm, form_of
from .integers.loops import (
    Bytes,
    added,
    combined,
    integers,
    looked_up,
    multiplied,
    requantized,
    static_codes,
    to_codes,
    to_floats,
)
from .integers.moves import moved, moves_from, reshaped_like
from .integers.products import accumulators, grouped_accumulators
from .integers.scalar_functions import function_of
from .integers.sums import check_terms, divided, summed
from .loops.constant_values import is_constant, read
from .quantization.marks import INTEGER

MAX_TERMS = 1 << 22  # of a sum of bytes less a zero point, so that it fits 32 bits
CONSTANT = parse_scheme("a8:tensor:sym")  # of constants, but with 16 bits: see _constant
CONSTANT_HIGHEST = (1 << 15) - 1


@register
def integer_only(module: ir.Operation, unit: Unit) -> None:
    """Compute codes from codes, where nothing but integers is needed between them."""
    rewriter = _Rewriter(unit)
    for op in walk(module, "abq.quantize"):
        if INTEGER in op.attributes:
            rewriter.quantized(op)
    for value, codes in rewriter.known.items():
        if is_used(value):
            op = defining_op(value)
            assert op is not None
            with ir.InsertionPoint(op), op.location:
                value.replace_all_uses_with(to_floats(codes))


class _Rewriter:
    """The bytes of values whose codes are known: results of `abq.dequantize`."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.known: dict[ir.Value, Bytes] = {}

    def quantized(self, op: ir.Operation) -> None:
        """Give an `abq.quantize` the codes as bytes."""
        view, codes = op.opview, static_codes(op)
        assert codes is not None, "integer-only graphs have static scales"
        with ir.InsertionPoint(op), op.location:
            value = self._bytes(view.x, codes)
            if value is None:
                self._note_island(view.x)
                value = to_codes(view.x, codes)
            elif any(use.owner.name == "abq.dequantize" for use in op.results[0].uses):
                self.unit.integers["values"] += 1
            types = [result.type for result in op.results]
            scales = {"x_scale": view.x_scale, "x_zero": view.x_zero}
            new = abq.QuantizeOp(value, *types, **scales).operation
        for old, result in zip(op.results, new.results, strict=True):
            old.replace_all_uses_with(result)
        op.erase()
        for use in new.results[0].uses:
            if use.owner.name == "abq.dequantize":
                self.known[use.owner.results[0]] = Bytes(value, codes)

    def _bytes(self, value: ir.Value, y: StaticCodes) -> ir.Value | None:
        """The bytes of a float value with the scale of `y`; None where floats compute it."""
        known = self.known.get(value)
        if known is not None:
            return known.value if known.codes == y else self._table(known, lambda x: x, y)
        sources = moves_from(value)
        if sources:
            return self._moved(value, sources, y)
        form = form_of(value)
        try:
            if isinstance(form, ProductForm):
                return self._product(form, y)
            if isinstance(form, BinaryForm):
                return self._binary(form, y)
            if isinstance(form, SumForm):
                return self._sum(form, y)
        except ValueError:  # no fixed-point number is the factor, or the bias
            return None
        return self._function(form, y) if form is not None else None

    def _moved(self, value: ir.Value, sources: list[ir.Value], y: StaticCodes) -> ir.Value | None:
        found = [self._bytes(source, y) for source in sources]
        if all(source is None for source in found):
            return None
        parts = []
        for source, part in zip(sources, found, strict=True):
            if part is None:
                self._note_island(source)
            parts.append(to_codes(source, y) if part is None else part)
        return moved(value, parts, y)

    def _product(self, form: ProductForm, y: StaticCodes) -> ir.Value | None:
        op = form.op
        if op.name == "abq.conv" and ir.IntegerAttr(op.attributes["groups"]).value > 1:
            x = self._operand(op.operands[0])
            acc = None if x is None else grouped_accumulators(op, x, self.unit)
        else:
            acc = accumulators(op, self.unit)
        if acc is None:
            return None
        factor = fixed_point.fixed_point(acc.units / y.scale)
        added = None if acc.bias is None else fixed_point.bias_codes(acc.bias, acc.units, y)
        bounds = _codes_between(form.bounds, y)
        return requantized(acc.value, acc.channel, added, factor, y, bounds, self.unit)

    def _binary(self, form: BinaryForm, y: StaticCodes) -> ir.Value | None:
        operands = [self._operand(operand) for operand in form.operands]
        if any(operand is None for operand in operands):
            return None
        a, b = operands
        assert a is not None and b is not None
        bounds = _codes_between(form.bounds, y)
        if form.kind == "arith.mulf":
            factor = fixed_point.fixed_point(a.codes.scale * b.codes.scale / y.scale)
            compute = partial(multiplied, factor=factor, y=y, bounds=bounds)
        else:
            subtract = form.kind == "arith.subf"
            factor = fixed_point.add_factors(a.codes, b.codes, y, subtract=subtract)
            compute = partial(added, factor=factor, y=y, bounds=bounds)
        return combined([a, b], form.reads, form.op.results[0], compute)

    def _operand(self, value: ir.Value) -> Bytes | None:
        """The codes of a value in their own scale."""
        if is_constant(value):
            return self._constant(value)
        known = self.known.get(value)
        if known is not None:
            return known
        sources = moves_from(value)
        inner = self._operand(sources[0]) if len(sources) == 1 else None
        if inner is None:
            return None
        return Bytes(moved(value, [inner.value], inner.codes), inner.codes)

    def _constant(self, value: ir.Value) -> Bytes | None:
        """A constant as integers of 16 bits with a scale of its own; None where it has infinities
        or NaN."""
        array = np.asarray(read(value, self.unit.store), np.float64)
        if not array.size or not np.isfinite(array).all():
            return None
        scale = float(np.float32(np.abs(array).max() / CONSTANT_HIGHEST)) or 1.0
        codes = np.rint(array / scale).astype(np.int32)
        return Bytes(integers(codes, self.unit), StaticCodes(CONSTANT, scale, 0))

    def _sum(self, form: SumForm, y: StaticCodes) -> ir.Value | None:
        x = self._operand(form.source)
        if x is None or form.factor <= 0:
            return None
        factor = fixed_point.fixed_point(x.codes.scale * form.factor / y.scale)
        before = form.loop.results[0]
        if not isinstance(form.count, int):
            total = _reshaped(summed(x, form.loop), before, form.total)
            result = divided(total, form.count, factor, y)
            check_terms(form.loop, MAX_TERMS)
            return result
        if form.count > MAX_TERMS:
            return None
        total = _reshaped(summed(x, form.loop), before, form.total)
        return requantized(total, None, None, factor, y, (y.low, y.high), self.unit)

    def _function(self, form: FunctionForm, y: StaticCodes) -> ir.Value | None:
        x, function = self._operand(form.source), function_of(form.tree)
        assert function is not None
        return None if x is None else self._table(x, function, y)

    def _table(self, x: Bytes, function: Callable[..., np.ndarray], y: StaticCodes) -> ir.Value:
        return looked_up(x.value, fixed_point.table(function, x.codes, y), self.unit)

    def _note_island(self, value: ir.Value) -> None:
        """Name what computes in floats between codes; entries from the model's inputs are none."""
        op = defining_op(value)
        if op is None or not self._is_tainted(value):
            return
        self.unit.integers["islands"] += 1
        why = "no rule of integer-only graphs has it"
        if isinstance(form_of(value), ProductForm):
            why = (
                "its sums are no int32 with one scale a channel; write w4:channel for groups of w4"
            )
        node = node_name(op) or op.name
        self.unit.refuse(node, f"is computed in floats between integers: {why}")

    def _is_tainted(self, value: ir.Value) -> bool:
        """Whether a value depends on one of codes."""
        pending, seen = [value], set()
        while pending:
            at = pending.pop()
            if at in self.known:
                return True
            op = defining_op(at)
            if op is None or at in seen:
                continue
            seen.add(at)
            if op.name.startswith("abq.") and op.name != "abq.weight":
                return True
            pending += list(op.operands)
        return False


def _codes_between(bounds: Bounds, y: StaticCodes) -> tuple[int, int]:
    """The codes of a clip's bounds; those of the format where it has none."""
    low, high = (int(y.code(bound)) for bound in bounds)
    return low, high


def _reshaped(total: ir.Value, before: ir.Value, after: ir.Value) -> ir.Value:
    """`total`, of the shape of `before`, with that of `after`, a reshape of `before`."""
    steps = []
    while after != before:
        op = defining_op(after)
        assert op is not None
        steps.append(op)
        after = op.operands[0]
    for op in reversed(steps):
        total = reshaped_like(op, total)
    return total
