"""A small network of dense layers, evaluated in numpy: SiLU between layers.

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
LEVELS = 31  # half of what bytes have: files are packed, and predictions the same


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
    layers: tuple[Layer, ...]

    def predict(self, values: F32) -> F32:
        """The last layer's outputs [rows, outputs], of [rows, inputs]."""
        *hidden, last = self.layers
        for layer in hidden:
            values = values @ layer.weight.astype(np.float32) * layer.step + layer.bias
            values = values / (1 + np.exp(-values))
        return values @ last.weight.astype(np.float32) * last.step + last.bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a file: few arrays, as each has a head."""
        widths = [len(self.layers[0].weight), *(len(layer.bias) for layer in self.layers)]
        vectors = [vector for layer in self.layers for vector in (layer.step, layer.bias)]
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
        lengths = [width for width in widths[1:] for _ in range(2)]
        if len(widths) < 2 or len(weights) != sum(own) or len(vectors) != sum(lengths):
            raise ValueError("the arrays of the network do not fit together")
        parts = np.split(vectors, np.cumsum(lengths)[:-1])
        layers = tuple(
            Layer(weight.reshape(shape), step, bias)
            for weight, shape, step, bias in zip(
                np.split(weights, np.cumsum(own)[:-1]),
                pairwise(widths),
                parts[::2],
                parts[1::2],
                strict=True,
            )
        )
        return cls(layers)
