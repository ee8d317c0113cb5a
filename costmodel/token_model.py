"""A small sequence model over the tokens of a kernel's MLIR: registers, spills, time.

After "ML-driven Hardware Cost Model for MLIR" (arXiv 2302.11405): tokens are embedded, two
convolutions look at their neighbourhoods, the mean and the maximum over all places and the number
of tokens describe the kernel, and small dense layers predict. Trained by
tests/bench/costmodel/token_training.py, evaluated here in numpy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from .features import VECTOR_BITS

F32 = NDArray[np.float32]

WIDTH, STRIDE = 5, 2  # of both convolutions
SHORTEST, LONGEST = 32, 1024  # tokens: shorter texts are filled up, of longer ones the rest is cut
UNKNOWN = 0  # the index of tokens that training had not, and of those that fill up
OUTPUTS = ("vector_registers", "spills", "spilled_bytes")


@dataclass(frozen=True)
class Allocation:
    """What register allocation is expected to come to: distinct vector registers, spills (stores
    that it adds), and their bytes."""

    vector_registers: float
    spills: float
    spilled_bytes: float


@dataclass(frozen=True)
class TokenModel:
    """`arrays`: `embedding` [vocabulary, E]; of each layer `w` [inputs, outputs] and `b` [outputs]:
    `first` [WIDTH * E, C], `second` [WIDTH * C, D], dense ones for kernels (`kernel0`, `kernel1`)
    and for time (`time0`, `time1`); `mean` and `scale` of the numbers beside a kernel."""

    vocabulary: Mapping[str, int]
    arrays: Mapping[str, F32]

    def indices(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """Tokens as rows of the embedding."""
        found = [self.vocabulary.get(token, UNKNOWN) for token in tokens[:LONGEST]]
        return np.array(found + [UNKNOWN] * (SHORTEST - len(found)), np.int64)

    def describe(self, tokens: Sequence[str], isa: str) -> F32:
        """A kernel as a vector."""
        indices = self.indices(tokens)
        x = self.arrays["embedding"][indices]
        for name in ("first", "second"):
            windows = np.lib.stride_tricks.sliding_window_view(x, WIDTH, axis=0)[::STRIDE]
            flat = windows.transpose(0, 2, 1).reshape(len(windows), -1)
            x = self._layer(name, flat)
        beside = np.array(kernel_numbers(len(indices), isa), np.float32)
        return np.concatenate([x.mean(axis=0), x.max(axis=0), beside])

    def allocation(self, kernel: F32) -> Allocation:
        """Of a kernel by its vector."""
        registers, spills, spilled = self._dense("kernel", kernel[None])[0].tolist()
        return Allocation(32 * registers, _count(spills), _count(spilled))

    def log_residuals(self, kernels: F32, numbers: NDArray[np.float64]) -> F32:
        """The logarithm of seconds over those of the analytic model; `kernels` [samples, vector]
        and `numbers` [samples, numbers], those of features.py but for the operations."""
        scaled = (numbers - self.arrays["mean"]) / self.arrays["scale"]
        return self._dense("time", np.concatenate([kernels, scaled.astype(np.float32)], 1))[:, 0]

    def _dense(self, name: str, x: F32) -> F32:
        hidden = self._layer(f"{name}0", x)
        last = f"{name}1"
        return hidden @ self.arrays[f"{last}.w"] + self.arrays[f"{last}.b"]

    def _layer(self, name: str, x: F32) -> F32:
        return np.maximum(x @ self.arrays[f"{name}.w"] + self.arrays[f"{name}.b"], 0)

    def save(self, path: Path) -> None:
        """Write a .npz, in 16 bits but for what numbers are scaled by."""
        words = [token for token, _ in sorted(self.vocabulary.items(), key=lambda item: item[1])]
        arrays: dict[str, Any] = {
            name: array if name in ("mean", "scale") else array.astype(np.float16)
            for name, array in self.arrays.items()
        }
        text = np.frombuffer(json.dumps(words).encode(), np.uint8)
        np.savez_compressed(path, vocabulary=text, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ArtifactError for a file that `save` has not written."""
        try:
            with np.load(path) as file:
                words = json.loads(bytes(file["vocabulary"]))
                arrays = {name: file[name].astype(np.float32) for name in file}
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path} is no token model: {error}") from error
        del arrays["vocabulary"]
        return cls({word: i for i, word in enumerate(words)}, arrays)


def kernel_numbers(length: int, isa: str) -> list[float]:
    """What stands beside the tokens: their number, and what registers there are."""
    bits = VECTOR_BITS.get(isa, 128)
    return [float(np.log2(length)) / 8, bits / 512, float(bits == 512)]


def _count(logarithm: float) -> float:
    return max(0.0, float(np.expm1(logarithm)))
