"""Packed rows of activations in blocks: the floats that they are rounded to, k f32 a row.

pack kernel  (i, x: memref<?xf32>, q: memref<?xi8>, m: index), as `activations.PackKernel`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.codes.block_rounding import magnitude_bits, rounded, shared_exponent
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import Scheme

from .activations import ROWS, rotated_rows
from .quantize_row import LANES, sweep

VALUE_BYTES = 4


@dataclass(frozen=True)
class BlockPackKernel:
    """Rows of `k` values, each block of them with a power of two, rotated before if asked."""

    scheme: Scheme
    k: int
    hadamard_block: int

    def emit(self, name: str, module: Any, isa: Any) -> None:
        with function(module, isa, name, [buffer("f32"), buffer("i8"), INDEX]) as (b, i, x, q, m):
            first = i * ROWS
            rows = rotated_rows(b, x, self.k, self.hadamard_block)
            with b.loop(first, b.min(first + ROWS, m)) as loop:
                source, begin = rows(loop.i * self.k)
                size = self.scheme.group_size
                assert size is not None
                with b.loop(0, self.k, size) as blocks:
                    count = b.min(b.index(self.k) - blocks.i, size)
                    target = (loop.i * self.k + blocks.i) * VALUE_BYTES
                    self._block(b, source, begin + blocks.i, count, q, target)

    def _block(
        self, b: Builder, source: Value, begin: Value, count: Value, q: Value, target: Value
    ) -> None:
        """Round `count` values from element `begin` on, to byte `target` of q."""
        format = self.scheme.format
        size = self.scheme.group_size or 0
        whole = size % LANES == 0 and self.k % size == 0

        def widen(i: Value, mask: Value | None, reach: Value) -> list[Value]:
            return [b.max(magnitude_bits(b, b.load(source, begin + i, LANES, mask)), reach)]

        (reaches,) = sweep(b, count, whole, widen, [b.const(0, vec(LANES, "i32"))])
        reach = b.splat(b.reduce(reaches, "maxsi"), LANES)
        exponent = shared_exponent(b, format, reach)

        def write(i: Value, mask: Value | None) -> tuple[()]:
            x = b.load(source, begin + i, LANES, mask)
            values = rounded(b, format, x, exponent, reach)
            bytes_ = b.bitcast(values, vec(VALUE_BYTES * LANES, "i8"))
            wide = b.mask(VALUE_BYTES * LANES, (count - i) * VALUE_BYTES)
            b.store(bytes_, q, target + i * VALUE_BYTES, None if mask is None else wide)
            return ()

        sweep(b, count, whole, write)


def block_pack_kernel(spec: MatmulSpec) -> Kernel:
    """The kernel that packs the rows of `spec`."""
    assert spec.activation is not None and spec.blocks
    body = BlockPackKernel(spec.activation, spec.k, spec.hadamard_block)
    size = spec.activation.group_size
    name = f"block_pack_{spec.activation.format.name}_g{size}_k{spec.k}_h{spec.hadamard_block}"
    return Kernel(name, (ROWS,), partial(body.emit, name))
