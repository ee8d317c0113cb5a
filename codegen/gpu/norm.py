"""Normalizations of rows: LayerNorm, RMSNorm and softmax, one launch each.

Arguments, one slot each; pointers that a spec does not have are left out:

    norm      (x, residual, weight, bias, y, sum f32; rows i32, epsilon f32) grid ceil(rows / block)
              x' = x + residual, which `sum` gets; of layer norms the mean is taken off x'; then
              y = x' / sqrt(mean of x'^2 + epsilon) * weight + bias
    softmax   (x, y f32; columns i32)                                        grid = rows

A row stays in registers between the passes over it, in the order of the formulas as written:
mean, difference, mean of squares, 1 / sqrt, products. Sums are trees over threads, the same for
every number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..builder import Value
from ..strategy import Kernel
from .arch import WARP, GpuArch
from .builder import POINTER, GpuBuilder, kernel
from .chunks import load4, store4

NormKind = Literal["layer", "rms"]

# Up to this many columns a warp has a row, beyond it a block.
WARP_COLUMNS = 1024
MAX_COLUMNS = 16384  # fuse-norm leaves longer rows alone
WARPS = 4  # that have a row each
THREADS = 256  # that share a row
SOFTMAX_THREADS = 128
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class NormSpec:
    """A layer norm or RMS norm over rows of `columns`; which operands it has; `keeps_sum`: x +
    residual is needed by others too."""

    kind: NormKind
    columns: int
    weight: bool = True
    bias: bool = False
    residual: bool = False
    keeps_sum: bool = False

    @property
    def name(self) -> str:
        """The name of its kernel."""
        flags = "".join(
            letter
            for letter, on in (
                ("r", self.residual),
                ("k", self.keeps_sum),
                ("w", self.weight),
                ("b", self.bias),
            )
            if on
        )
        return f"norm_{self.kind}_{self.columns}" + (f"_{flags}" if flags else "")


def norm_kernel(spec: NormSpec) -> Kernel:
    """`block[0]` rows a block. See the file's head."""
    by_warp = spec.columns <= WARP_COLUMNS
    threads = WARP * WARPS if by_warp else THREADS
    names = ["x", "residual", "weight", "bias", "y", "sum"]
    present = [True, spec.residual, spec.weight, spec.bias, True, spec.keeps_sum]
    pointers = [name for name, on in zip(names, present, strict=True) if on]
    return Kernel(
        spec.name, (WARPS if by_warp else 1,), partial(_emit_norm, spec, by_warp, threads, pointers)
    )


def _emit_norm(
    spec: NormSpec, by_warp: bool, threads: int, pointers: list[str], module: Any, arch: GpuArch
) -> None:
    types = [POINTER] * len(pointers) + ["i32", "f32"]
    shared = 0 if by_warp else THREADS // WARP * 4
    with kernel(module, arch, spec.name, types, threads=threads, shared=shared) as (
        b,
        block,
        *arguments,
        rows,
        epsilon,
    ):
        buffers = dict(zip(pointers, arguments, strict=True))
        if by_warp:
            row = block * WARPS + b.warp
            with b.when(row < rows):
                _normalize(b, spec, buffers, row, epsilon, b.lane, WARP, b.warp_sum)
        else:
            _normalize(
                b, spec, buffers, block, epsilon, b.thread, THREADS, lambda v: _block_sum(b, v)
            )


def _normalize(
    b: GpuBuilder,
    spec: NormSpec,
    buffers: dict[str, Value],
    row: Value,
    epsilon: Value,
    thread: Value,
    threads: int,
    total: Callable[[Value], Value],
) -> None:
    """One row by `threads` threads, of which this is number `thread`; `total` adds over them."""
    columns = spec.columns
    count = -(-columns // (4 * threads))
    at = [(thread + i * threads) * 4 for i in range(count)]
    start = b.wide(row) * (columns * 4)
    x = [v for c in at for v in load4(b, b.at(buffers["x"], start), c, columns)]
    if spec.residual:
        residual = [v for c in at for v in load4(b, b.at(buffers["residual"], start), c, columns)]
        x = [a + r for a, r in zip(x, residual, strict=True)]
    if spec.keeps_sum:
        _store(b, x, b.at(buffers["sum"], start), at, columns)
    if spec.kind == "layer":
        mean = total(_sum(x)) / float(columns)
        # Past the row's end there is no difference to the mean.
        inside = [c + i < columns for c in at for i in range(4)]
        x = [b.select(keep, v - mean, 0.0) for keep, v in zip(inside, x, strict=True)]
    variance = total(_sum([v * v for v in x])) / float(columns)
    factor = b.reciprocal_root(variance + epsilon)
    y = [v * factor for v in x]
    if spec.weight:
        weight = [v for c in at for v in load4(b, buffers["weight"], c, columns)]
        y = [v * w for v, w in zip(y, weight, strict=True)]
    if spec.bias:
        bias = [v for c in at for v in load4(b, buffers["bias"], c, columns)]
        y = [v + w for v, w in zip(y, bias, strict=True)]
    _store(b, y, b.at(buffers["y"], start), at, columns)


def _store(
    b: GpuBuilder, values: Sequence[Value], row: Value, at: Sequence[Value], columns: int
) -> None:
    for i, column in enumerate(at):
        store4(b, values[4 * i : 4 * i + 4], row, column, columns)


def _sum(values: Sequence[Value]) -> Value:
    """As a tree: rounding errors grow with its depth."""
    values = list(values)
    while len(values) > 1:
        pairs = [values[i] + values[i + 1] for i in range(0, len(values) - 1, 2)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]


def _block_sum(b: GpuBuilder, value: Value) -> Value:
    """The sum over all threads of the block, in all of them."""
    return _across_warps(b, b.warp_sum(value), b.threads // WARP, lambda a, c: a + c)


def _across_warps(
    b: GpuBuilder, value: Value, warps: int, combine: Callable[[Value, Value], Value]
) -> Value:
    """The values of all warps combined in their order; may be called again at once."""
    with b.when(b.lane == 0):
        b.store(value, b.shared, b.warp * 4)
    b.barrier()
    total = b.load(b.shared, "f32")
    for warp in range(1, warps):
        total = combine(total, b.load(b.shared, "f32", warp * 4))
    b.barrier()
    return total


def softmax_kernel() -> Kernel:
    """A block a row, of any length. See the file's head."""
    return Kernel("softmax", (1,), _emit_softmax)


def _emit_softmax(module: Any, arch: GpuArch) -> None:
    warps = SOFTMAX_THREADS // WARP
    types = [POINTER, POINTER, "i32"]
    with kernel(module, arch, "softmax", types, threads=SOFTMAX_THREADS, shared=warps * 4) as (
        b,
        block,
        x,
        y,
        columns,
    ):
        start = b.wide(block) * (b.wide(columns) * 4)
        x, y = b.at(x, start), b.at(y, start)
        minus = b.const(float("-inf"), "f32")
        with b.loop(b.thread, columns, SOFTMAX_THREADS, [minus]) as loop:
            loop.carry(b.max(b.load(x, "f32", b.wide(loop.i) * 4), loop.args[0]))
        largest = _across_warps(b, b.warp_max(loop.results[0]), warps, b.max)
        # Scores that are all minus infinity: 0 / 0. A NaN among them is one of its weight.
        base = b.select(largest == float("-inf"), b.const(0.0, "f32"), largest)

        def weight(i: Value) -> Value:
            return b.exp2((b.load(x, "f32", b.wide(i) * 4) - base) * LOG2_E)

        with b.loop(b.thread, columns, SOFTMAX_THREADS, [b.const(0.0, "f32")]) as loop:
            loop.carry(loop.args[0] + weight(loop.i))
        total = _block_sum(b, loop.results[0])
        with b.loop(b.thread, columns, SOFTMAX_THREADS) as loop:
            b.store(weight(loop.i) / total, y, b.wide(loop.i) * 4)
