"""Convolutions of codes by products of strategy `int8`, without a matrix of patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from abqc.codegen.strategy import ConvKernel, PlanesKernel
from abqc.dialects.code_conv_spec import CodeConvSpec
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.formats import QuantizedTensor

from ..int8.strategy import Int8Strategy
from ..panels.reduction import SEGMENT_TERMS
from .kernel import direct_kernel
from .layout import ConvWeights, scratch_bytes
from .patches import patches_kernel
from .planes import planes_kernel

MAX_SCRATCH = 1 << 18  # bytes of the stack
MAX_PHASES = 8  # of columns, each of which is code of its own where images are laid out


@dataclass(frozen=True)
class Int8Conv:
    """Exact accumulators and the results of strategy `int8` over patches, to the bit."""

    name: str = "int8-direct"

    def unsupported(self, spec: CodeConvSpec) -> str | None:
        """Why it leaves `spec` to a matrix of patches, as a sentence; None if it does not."""
        refusal = Int8Strategy().unsupported(spec.product)
        if refusal is not None:
            return refusal
        if spec.k > SEGMENT_TERMS:
            return f"sums of more than {SEGMENT_TERMS} terms need 64 bits"
        if spec.groups > 1 and not spec.weight.symmetric:
            return "asymmetric weights have scales in several groups"
        if scratch_bytes(ConvWeights.of(spec)) > MAX_SCRATCH:
            return "decoding the weights of 16 channels needs too much stack"
        if spec.kept[1] > MAX_PHASES:
            return f"a stride takes columns apart into {spec.kept[1]} phases"
        return None

    def pack_weight(self, spec: CodeConvSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The weight, codes [N, K] as ONNX stores them, as a blob of bytes."""
        assert isinstance(weight, QuantizedTensor), "panels hold quantized weights"
        return ConvWeights.of(spec).pack(weight)

    def planes_kernel(self, spec: CodeConvSpec, *, measured: bool) -> PlanesKernel:
        """What quantizes an image, by scales `measured` on it or by fixed ones, and lays it out."""
        return planes_kernel(spec, measured=measured)

    def conv_kernel(self, spec: CodeConvSpec) -> ConvKernel:
        """What convolves planes."""
        return _conv_kernel(spec, None)


def _conv_kernel(spec: CodeConvSpec, epilogue: Epilogue | None) -> ConvKernel:
    name = _name(spec)
    direct = direct_kernel(spec, name, epilogue)
    return ConvKernel(
        direct.name,
        direct.block,
        direct.emit,
        uses=direct.uses,
        spec=spec,
        patches=patches_kernel(spec, name, epilogue) if spec.may_take_patches else None,
        with_epilogue=partial(_conv_kernel, spec),
    )


def _name(spec: CodeConvSpec) -> str:
    """Equal for equal bodies: N and sizes are arguments."""
    weight, product = spec.weight, spec.product
    parts = [
        f"int8_conv_n{spec.block}_{weight.format.name}",
        f"g{min(weight.group_size or spec.k, spec.k)}",
        spec.product.scale_name,
        f"c{spec.channels}",
    ]
    for letter, pair in zip("wsd", (spec.window, spec.strides, spec.dilations), strict=True):
        parts.append(f"{letter}{pair[0]}x{pair[1]}")
    parts.append(spec.activation.format.name)
    parts += ["flat"] * spec.flat + ["acc"] * product.accumulators
    return "_".join(parts)
