"""A small network of dense layers, evaluated in numpy: inputs scaled, SiLU between layers.

Weights are bytes with a step for each output: what comes with the package shall be small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
CLIP = 3.0  # of scaled inputs: what lies far outside of training is not followed
LEVELS = 127


@dataclass(frozen=True)
class Layer:
    """outputs = (inputs @ weight) * step + bias, `weight` [inputs, outputs] int8."""

    weight: NDArray[np.int8]
    step: F32
    bias: F32

    @classmethod
    def of(cls, weight: F32, bias: F32) -> Self:
        """Rounded to bytes."""
        step = np.maximum(np.abs(weight).max(axis=0), 1e-12) / LEVELS
        return cls(np.rint(weight / step).astype(np.int8), step.astype(np.float32), bias)


@dataclass(frozen=True)
class DenseNetwork:
    """Inputs are taken less `mean`, times `scale` (0: of no use), and clipped."""

    mean: F32
    scale: F32
    layers: tuple[Layer, ...]

    def predict(self, rows: NDArray[Any]) -> F32:
        """The last layer's outputs [rows, outputs], of rows [rows, inputs]."""
        values = np.clip((rows - self.mean) * self.scale, -CLIP, CLIP).astype(np.float32)
        *hidden, last = self.layers
        for layer in hidden:
            values = values @ layer.weight.astype(np.float32) * layer.step + layer.bias
            values = values / (1 + np.exp(-values))
        return values @ last.weight.astype(np.float32) * last.step + last.bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a file."""
        found: dict[str, NDArray[Any]] = {"mean": self.mean, "scale": self.scale}
        for number, layer in enumerate(self.layers):
            found[f"weight{number}"] = layer.weight
            found[f"step{number}"] = layer.step
            found[f"bias{number}"] = layer.bias
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Self:
        """Of what `arrays` made, under names with a prefix. Raises KeyError or ValueError for
        arrays that are not of a network."""
        count = sum(name.startswith(f"{prefix}weight") for name in arrays)
        layers = tuple(
            Layer(*(arrays[f"{prefix}{part}{i}"] for part in ("weight", "step", "bias")))
            for i in range(count)
        )
        network = cls(arrays[f"{prefix}mean"], arrays[f"{prefix}scale"], layers)
        network._check()
        return network

    def _check(self) -> None:
        width = len(self.mean)
        fits: Sequence[bool] = [bool(self.layers), self.scale.shape == self.mean.shape]
        for layer in self.layers:
            own, outputs = layer.weight.shape
            fits = [*fits, own == width, layer.step.shape == layer.bias.shape == (outputs,)]
            width = outputs
        if not all(fits):
            raise ValueError("the arrays of the network do not fit together")
