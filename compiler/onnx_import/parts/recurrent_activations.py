"""The activations of RNN, GRU and LSTM, with their parameters (ONNX, operator RNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..building.scalars import Scalar
from ..registry import Node

Activation = Callable[[Scalar], Scalar]


@dataclass(frozen=True)
class _Kind:
    """`defaults` of alpha and beta; None where ONNX has none."""

    function: Callable[..., Scalar]
    defaults: tuple[float | None, ...] = ()


def _softplus(x: Scalar) -> Scalar:
    return x.maximum(0) + (-x.abs()).exp().log1p()  # log(1 + e^x) without overflow


def _elu(x: Scalar, alpha: float) -> Scalar:
    return (x >= 0).select(x, (x.minimum(0).exp() - 1.0) * alpha)


_KINDS = {
    "relu": _Kind(lambda x: x.maximum(0)),
    "tanh": _Kind(lambda x: x.tanh()),
    "sigmoid": _Kind(lambda x: x.sigmoid()),
    "softsign": _Kind(lambda x: x / (x.abs() + 1.0)),
    "softplus": _Kind(_softplus),
    "elu": _Kind(_elu, (1.0,)),
    "leakyrelu": _Kind(lambda x, alpha: (x >= 0).select(x, x * alpha), (0.01,)),
    "thresholdedrelu": _Kind(lambda x, alpha: (x > alpha).select(x, x.like(0)), (1.0,)),
    "affine": _Kind(lambda x, alpha, beta: x * alpha + beta, (1.0, 0.0)),
    "scaledtanh": _Kind(lambda x, alpha, beta: (x * beta).tanh() * alpha, (None, None)),
    "hardsigmoid": _Kind(lambda x, alpha, beta: (x * alpha + beta).clamp(0, 1), (0.2, 0.5)),
}


def activations(node: Node, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """The activations of each direction, as the attributes say. Names in any case.

    `activation_alpha` and `activation_beta` have numbers only for the activations that take one.
    """
    names = node.strings("activations", list(defaults) * directions)
    if len(names) == len(defaults) and directions == 2:
        names = names * 2
    if len(names) != len(defaults) * directions:
        raise node.error(
            f"it has {len(names)} activations, expected {len(defaults)} for each of {directions} "
            "directions"
        )
    alphas = iter(node.floats("activation_alpha", []))
    betas = iter(node.floats("activation_beta", []))
    made = [_activation(node, name, alphas, betas) for name in names]
    return [made[d * len(defaults) : (d + 1) * len(defaults)] for d in range(directions)]


def _activation(
    node: Node, name: str, alphas: Iterator[float], betas: Iterator[float]
) -> Activation:
    kind = _KINDS.get(name.lower())
    if kind is None:
        raise node.error(f"activation '{name}' is none of ONNX's")
    numbers = [
        next(given, default) for given, default in zip((alphas, betas), kind.defaults, strict=False)
    ]
    if None in numbers:
        raise node.error(f"activation '{name}' needs activation_alpha and activation_beta")
    return lambda x: kind.function(x, *numbers)
