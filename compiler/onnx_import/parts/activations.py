"""Activations by the names that attributes give them, with their parameters.

The names of ONNX's RNN and of onnxruntime's fusions, in any case. `None` for a default: the node
must say the number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..building.scalars import Scalar
from ..registry import Node

Activation = Callable[[Scalar], Scalar]


@dataclass(frozen=True)
class Kind:
    """`function` of a scalar and as many numbers (alpha, beta) as there are `defaults`."""

    function: Callable[..., Scalar]
    defaults: tuple[float | None, ...] = ()


def _softplus(x: Scalar) -> Scalar:
    return x.maximum(0) + (-x.abs()).exp().log1p()  # log(1 + e^x) without overflow


def _elu(x: Scalar, alpha: float) -> Scalar:
    return (x >= 0).select(x, (x.minimum(0).exp() - 1.0) * alpha)


KINDS = {
    "": Kind(lambda x: x),
    "identity": Kind(lambda x: x),
    "relu": Kind(lambda x: x.maximum(0)),
    "relu2": Kind(lambda x: x.maximum(0) * x.maximum(0)),
    "tanh": Kind(lambda x: x.tanh()),
    "sigmoid": Kind(lambda x: x.sigmoid()),
    "silu": Kind(lambda x: x * x.sigmoid()),
    "gelu": Kind(Scalar.gelu),
    "fastgelu": Kind(Scalar.tanh_gelu),
    "quickgelu": Kind(lambda x, alpha: x * (x * alpha).sigmoid(), (1.702,)),
    "softsign": Kind(lambda x: x / (x.abs() + 1.0)),
    "softplus": Kind(_softplus),
    "elu": Kind(_elu, (1.0,)),
    "leakyrelu": Kind(lambda x, alpha: (x >= 0).select(x, x * alpha), (0.01,)),
    "thresholdedrelu": Kind(lambda x, alpha: (x > alpha).select(x, x.like(0)), (1.0,)),
    "affine": Kind(lambda x, alpha, beta: x * alpha + beta, (1.0, 0.0)),
    "scaledtanh": Kind(lambda x, alpha, beta: (x * beta).tanh() * alpha, (None, None)),
    "hardsigmoid": Kind(lambda x, alpha, beta: (x * alpha + beta).clamp(0, 1), (0.2, 0.5)),
    "hardswish": Kind(lambda x: x * (x * (1 / 6) + 0.5).clamp(0, 1)),
    "clip": Kind(lambda x, low, high: x.maximum(low).minimum(high), (None, None)),
}


def activation(node: Node, name: str, numbers: Sequence[float | None] = ()) -> Activation:
    """The activation `name`; `numbers` are its parameters, defaults where they are None or end."""
    kind = KINDS.get(name.lower())
    if kind is None:
        raise node.error(f"activation '{name}' is none of ONNX's or onnxruntime's")
    given = [*numbers, *[None] * len(kind.defaults)]
    values = [
        default if number is None else number
        for number, default in zip(given, kind.defaults, strict=False)
    ]
    if None in values:
        raise node.error(
            f"activation '{name}' needs its numbers: activation_alpha and activation_beta, or "
            "activation_params"
        )
    return lambda x: kind.function(x, *values)
