"""A small network of dense layers, evaluated in numpy: inputs scaled, SiLU between layers.

Weights are bytes with a step for each output: what comes with the package shall be small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
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
        """For a file: few arrays, as each has a head."""
        vectors = [self.mean, self.scale]
        vectors += [vector for layer in self.layers for vector in (layer.step, layer.bias)]
        widths = [len(self.mean), *(len(layer.bias) for layer in self.layers)]
        return {
            "widths": np.array(widths, np.uint16),
            "weights": np.concatenate([layer.weight.ravel() for layer in self.layers]),
            "vectors": np.concatenate(vectors).astype(np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Self:
        """Of what `arrays` made, under names with a prefix. Raises KeyError or ValueError for
        arrays that are not of a network."""
        widths = [int(width) for width in arrays[f"{prefix}widths"]]
        weights, vectors = arrays[f"{prefix}weights"], arrays[f"{prefix}vectors"]
        own = [inputs * outputs for inputs, outputs in pairwise(widths)]
        lengths = [widths[0], widths[0], *(width for width in widths[1:] for _ in range(2))]
        if len(widths) < 2 or len(weights) != sum(own) or len(vectors) != sum(lengths):
            raise ValueError("the arrays of the network do not fit together")
        mean, scale, *rest = np.split(vectors, np.cumsum(lengths)[:-1])
        layers = tuple(
            Layer(weight.reshape(shape), step, bias)
            for weight, shape, step, bias in zip(
                np.split(weights, np.cumsum(own)[:-1]),
                pairwise(widths),
                rest[::2],
                rest[1::2],
                strict=True,
            )
        )
        return cls(mean, scale, layers)
