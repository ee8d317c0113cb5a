"""What reads a quantized cache reads its rows: rotations and dequantization go into the reader.

    a (x H)^T = (a H) x^T        keys: queries are rotated, H being symmetric
    p (x H)   = (p x) H          values: the result is
    dequantize(rows)             kernels decode rows of bytes, where the target has such

Permutations of channels are such rotations. Reshapes between that keep rows whole are done to the
bytes. What is not of this form stays: all rows are then decoded, and turned, in every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects import abq
from abqc.dialects.abq_caches import PermuteChannelsOp, cache_format, channel_order
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, walk
from .loops.generics import groups
from .loops.slices import is_whole, static_sizes
from .patterns.caches import reshaped
from .share_heads import GROUP

SLICE = "tensor.extract_slice"
HEADS_IN_BATCH = [[0, 1], [2], [3]]


@dataclass(frozen=True)
class _Read:
    """An operand: what `decoded` makes, rotated or permuted by `turn` (None: neither), and reshaped
    by `steps`, the last one first."""

    decoded: ir.Operation
    steps: tuple[ir.Operation, ...]
    turn: ir.Operation | None

    @property
    def format(self) -> CacheFormat:
        return cache_format(self.decoded)

    @property
    def is_permuted(self) -> bool:
        return self.turn is not None and self.turn.name == "abq.permute_channels"

    def can_turn_others(self, axis: int, steps: list[list[list[int]]], group: int) -> bool:
        """Whether other operands can be rotated or permuted in its place.

        What permutes the channels of each head must find the heads again: along `axis` of the
        source, reshaped by no others than `steps`, `group` query heads for each.
        """
        if self.turn is None or not self.is_permuted:
            return True
        same_axis = ir.IntegerAttr(self.turn.attributes["axis"]).value == axis
        slices = [step for step in self.steps if step.name == SLICE]
        same_heads = all(is_whole(step, axis, step.operands[0]) for step in slices)
        same_steps = [groups(step) for step in self.steps if step not in slices] == steps
        return same_axis and same_heads and same_steps and group != abq.DYNAMIC

    @property
    def columns(self) -> int:
        return abq.shape(self.decoded.results[0])[-1]

    def operand(self, *, rows: bool) -> ir.Value:
        """The operand without its rotation, as bytes of `rows` or as floats."""
        value = self.decoded.operands[0] if rows else self.decoded.results[0]
        for step in reversed(self.steps):
            value = reshaped(step, value)
        return value


@register
def fuse_caches(module: ir.Operation, unit: Unit) -> None:
    """Let abq.batch_matmul and abq.attention read rows of quantized caches."""
    for op in walk(module):
        rewrite = _RULES.get(op.name)
        if rewrite is not None and unit.target is not None:
            with ir.InsertionPoint(op), op.location:
                rewrite(op, unit)


def _product(op: ir.Operation, unit: Unit) -> None:
    a, c = op.operands
    read = _read(c)
    if read is None:
        return
    transposed = bool(ir.IntegerAttr(op.attributes["transposed"]).value)
    rows = unit.known_target.cache_rows(read.format, read.columns) is not None
    group = ir.IntegerAttr(op.attributes[GROUP]).value if GROUP in op.attributes else 1
    if not read.can_turn_others(1, [HEADS_IN_BATCH], group):
        return
    if transposed:
        a = _turned(a, read, 0, group, back=True)
    c = read.operand(rows=rows)
    new = abq.BatchMatmulOp(a, c, op.attributes["transposed"], op.results[0].type)
    if rows:
        new.operation.attributes[abq.ROWS] = ir.StringAttr.get(read.format.text)
    if GROUP in op.attributes:
        new.operation.attributes[GROUP] = op.attributes[GROUP]
    y = new.result if transposed else _turned(new.result, read, 0, group)
    op.results[0].replace_all_uses_with(y)
    op.erase()


def _attention(op: ir.Operation, unit: Unit) -> None:
    view = op.opview
    reads = [_read(view.k), _read(view.v)]
    if not any(reads):
        return
    flags = list(ir.DenseI64ArrayAttr(op.attributes["rows_first"]))[1:3]
    for read, rows_first in zip(reads, flags, strict=True):
        if read is not None and not read.can_turn_others(1 + rows_first, [], _group(op)):
            return
    for number, read in enumerate(reads, start=1):
        if read is not None:
            op.operands[number] = read.operand(rows=True)
    texts = [read.format.text if read is not None else "" for read in reads]
    op.attributes[abq.ROWS] = ir.ArrayAttr.get([ir.StringAttr.get(text) for text in texts])
    of_q, *_, of_y = ir.DenseI64ArrayAttr(op.attributes["rows_first"])
    group = _group(op)
    keys, values = reads
    if keys is not None:
        op.operands[0] = _turned(view.q, keys, 1 + of_q, group, back=True)
    if values is not None and values.turn is not None:
        with ir.InsertionPoint.after(op):
            turned = _turned(op.results[0], values, 1 + of_y, group)
        made = defining_op(turned)
        assert made is not None
        op.results[0].replace_all_uses_except(turned, made)


def _group(attention: ir.Operation) -> int:
    """Query heads that share one of keys and values."""
    of_q, of_k, *_ = ir.DenseI64ArrayAttr(attention.attributes["rows_first"])
    heads, shared = (
        abq.shape(attention.operands[i])[1 + first] for i, first in ((0, of_q), (1, of_k))
    )
    return abq.DYNAMIC if abq.DYNAMIC in (heads, shared) else heads // shared


def _turned(x: ir.Value, read: _Read, axis: int, group: int, *, back: bool = False) -> ir.Value:
    """`x`, whose heads lie along `axis`, rotated or permuted as the operand was; `back`: by the
    inverse."""
    i64 = ir.IntegerType.get_signless(64)
    if read.turn is None:
        return x
    if not read.is_permuted:  # a rotation is its own inverse
        return abq.HadamardOp(x, read.turn.attributes["block"], x.type).result
    order = np.array(channel_order(read.turn))
    if back:
        order = np.argsort(order, axis=1)
    return PermuteChannelsOp(
        x,
        ir.DenseI64ArrayAttr.get(order.ravel().tolist()),
        ir.IntegerAttr.get(i64, axis),
        ir.IntegerAttr.get(i64, group),
        x.type,
    ).result


def _read(value: ir.Value) -> _Read | None:
    """Through reshapes and slices that leave the last axis alone, and one rotation, to
    dequantization."""
    steps: list[ir.Operation] = []
    turn = None
    while (op := defining_op(value)) is not None:
        if op.name == "abq.dequantize_cache":
            return _Read(op, tuple(steps), turn)
        if _keeps_rows(op):
            steps.append(op)
        elif op.name in ("abq.hadamard", "abq.permute_channels") and turn is None:
            turn = op
        else:
            break
        value = op.operands[0]
    return None


def _keeps_rows(op: ir.Operation) -> bool:
    if op.name in ("tensor.collapse_shape", "tensor.expand_shape"):
        return len(groups(op)[-1]) == 1
    if op.name != SLICE:
        return False
    last = len(static_sizes(op)) - 1
    same_rank = len(abq.shape(op.results[0])) == last + 1
    return same_rank and is_whole(op, last, op.operands[0])


_RULES = {"abq.batch_matmul": _product, "abq.attention": _attention}
