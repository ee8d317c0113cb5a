"""Convolutions in bf16 without a matrix of patches: those of `float_products/direct_conv.py`, whose
planes and weights are pairs of channels (i32, `Bf16ConvSpec`).

    kernel (i, x: memref<?xi32>, w: memref<?xi32>, bias: memref<?xf32>, inputs: memref<?xf32>...,
            y: memref<?xf32>,
            groups, outputs, pairs, pitch, plane, height, width, rows: index)

A vector of pairs of pixels meets a pair of weights: VDPBF16PS where a CPU has it, else two f32
multiply-adds of the halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.bf16_conv_spec import Bf16ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..float_products.direct_conv import MANY_TAPS_OF_PHASES, OUTPUTS, DirectConv
from ..float_products.finish import Finish
from ..float_products.tile import broadcast
from .dot import dot_steps


def bf16_conv_kernel(spec: Bf16ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over batches, outputs and blocks of channels."""
    name = name_with(spec.name, epilogue)
    emit = partial(_emit, name, spec, epilogue)
    return Kernel(name, (1, OUTPUTS, 1), emit, uses=frozenset({"bf16"}))


def _emit(name: str, spec: Bf16ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    count = 0 if epilogue is None else len(epilogue.reads)
    arguments = [buffer("i32")] * 2 + [buffer("f32")] * (2 + count) + [INDEX] * 8
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest, _):
        finish = Finish(b, epilogue, rest[:count], isa.lanes(32))
        _Bf16Conv(b, spec, finish, x, w, bias, *rest[count:]).emit(i)


@dataclass
class _Bf16Conv(DirectConv):
    @property
    def most_taps(self) -> int:
        return super().most_taps if self.b.isa.dot_bf16 else MANY_TAPS_OF_PHASES

    def tap(
        self,
        acc: Sequence[Value],
        at: Value,
        w_at: Value,
        count: int,
        masks: Sequence[Value | None],
    ) -> list[Value]:
        b, lanes = self.b, self.lanes
        xs = [b.load(self.x, at + v * lanes, lanes, mask) for v, mask in enumerate(masks)]
        weights = [broadcast(b, self.w, w_at + n, lanes) for n in range(count)]
        products = [(weight, x) for weight in weights for x in xs]
        result = list(acc)
        for step in dot_steps(b.isa):
            result = [step(b, w, x, y) for (w, x), y in zip(products, result, strict=True)]
        return result
