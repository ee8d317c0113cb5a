"""The activations of RNN, GRU and LSTM: which each direction has (ONNX, operator RNN)."""

from __future__ import annotations

from collections.abc import Sequence

from ..registry import Node
from .activations import KINDS, Activation, activation


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

    def numbers(name: str) -> list[float | None]:
        kind = KINDS.get(name.lower())
        takes = 0 if kind is None else len(kind.defaults)
        return [next(given, None) for given in (alphas, betas)[:takes]]

    made = [activation(node, name, numbers(name)) for name in names]
    return [made[d * len(defaults) : (d + 1) * len(defaults)] for d in range(directions)]
