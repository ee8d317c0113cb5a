"""How many registers ptxas gives a thread, predicted: networks and trees that agree on a number.

ptxas goes to steps of occupancy, so that a count is often one of two numbers far apart, whose mean
is neither. Networks say how likely each count is, trees which one to expect; the answer is the
middle of the counts within NEAR of each other that are likeliest by both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dense_network import F32, DenseNetwork
from .number_inputs import NumberInputs
from .trees import F64, Trees

NEAR = 8  # registers
BINS = np.arange(22.0, 258.0, 4.0)  # counts that networks know the likelihood of
COUNTS = np.arange(20.0, 257.0)
SPREAD = 8.0  # registers: the likelihood by the trees falls to 1/e

# Likelihoods of BINS as those of COUNTS.
_BETWEEN = np.maximum(0.0, 1 - np.abs(BINS[:, None] - COUNTS) / 4).astype(np.float32)


@dataclass(frozen=True)
class RegisterCounts:
    """Networks look at `inputs`; without networks, trees decide."""

    trees: Trees
    networks: tuple[DenseNetwork, ...]
    inputs: NumberInputs

    def predict(self, rows: F64) -> F64:
        """Registers of `rows` (assembly.row)."""
        found: F64 = COUNTS[np.argmax(_near(self._likely(rows)), axis=1)]
        return found

    def certainty(self, rows: F64) -> F64:
        """How much of the likelihood lies within NEAR of what `predict` says, 0 to 1: it orders
        kernels by how often that is right, and is no probability of it."""
        likely = self._likely(rows)
        found: F64 = _near(likely).max(axis=1) / likely.sum(axis=1)
        return found

    def _likely(self, rows: F64) -> F64:
        """Of each of COUNTS, in no unit."""
        expected = self.trees.predict(rows)
        likely = np.exp(-np.abs(COUNTS - expected[:, None]) / SPREAD)
        if self.networks:
            seen = self.inputs(rows)
            likely *= sum(_softmax(each.predict(seen)) for each in self.networks) @ _BETWEEN
        return likely


def _near(likely: F64) -> F64:
    """The likelihood of all counts within NEAR of each of COUNTS."""
    sums = np.pad(likely.cumsum(axis=1), ((0, 0), (1, 0)))
    place = np.arange(len(COUNTS))
    below, above = np.maximum(place - NEAR, 0), np.minimum(place + NEAR + 1, len(COUNTS))
    found: F64 = sums[:, above] - sums[:, below]
    return found


def _softmax(scores: F32) -> F32:
    likely = np.exp(scores - scores.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)
