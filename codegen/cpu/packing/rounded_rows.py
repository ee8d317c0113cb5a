"""Packed rows of quantized activations as floats: what their codes stand for.

For weights without integers: products of floats are as exact there as any. A row is k f32, each
scale * (q - z), rounded once; a row whose scale is NaN is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.strategy import Kernel, MatmulSpec

from .activations import ROWS, PackKernel, ScaledPackKernel, rows_kernel
from .quantize_row import LANES, RowCodes, RowScale, sweep


@dataclass(frozen=True)
class RoundedRows:
    """The `RowWriter` of rows of `k` values."""

    k: int

    @property
    def row_bytes(self) -> int:
        return 4 * self.k

    def write_row(self, b: Builder, codes: RowCodes, row: RowScale, q: Value, at: Value) -> None:
        scale, zero = b.splat(row.scale, LANES), b.splat(row.zero, LANES)

        def write(i: Value, mask: Value | None) -> tuple[()]:
            values = b.to_float(codes.vector(i, row, mask) - zero) * scale
            bytes_ = b.bitcast(values, vec(4 * LANES, "i8"))
            wide = None if mask is None else b.mask(4 * LANES, (b.index(self.k) - i) * 4)
            b.store(bytes_, q, at + i * 4, wide)
            return ()

        sweep(b, b.index(self.k), self.k % LANES == 0, write)


def rounded_pack_kernel(spec: MatmulSpec) -> Kernel:
    """Rows with scales of their own, rotated before if `spec` asks for it."""
    assert spec.activation is not None
    format = spec.activation.format
    kernel = PackKernel(format, spec.k, spec.hadamard_block, RoundedRows(spec.k))
    name = f"rounded_pack_{format.name}_k{spec.k}_h{spec.hadamard_block}"
    return rows_kernel(kernel, name)


def rounded_scaled_pack_kernel(spec: MatmulSpec) -> Kernel:
    """Rows with scales that were measured before, rotated if `spec` asks for it."""
    assert spec.activation is not None
    format = spec.activation.format
    kernel = ScaledPackKernel(format, spec.k, spec.hadamard_block, RoundedRows(spec.k))
    name = f"rounded_scaled_pack_{format.name}_k{spec.k}_h{spec.hadamard_block}"
    return Kernel(name, (ROWS,), partial(_emit, kernel, name))


def _emit(kernel: ScaledPackKernel, name: str, module: object, isa: object) -> None:
    kernel.emit(module, isa, name)  # type: ignore[arg-type]
