"""The next token from logits: the likeliest one, or one drawn at a temperature."""

from __future__ import annotations

import numpy as np

from ..errors import InputError


class Sampler:
    """Calls take logits f32 [vocabulary] and give a token.

    `temperature` 0 is greedy: the likeliest token, the first of equals. Otherwise logits are
    divided by it, and a token is drawn by probability from the smallest set of the likeliest ones
    that has at least `top_p` of it (nucleus sampling, arXiv:1904.09751). `seed` fixes the draws.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not 0 <= temperature < float("inf"):
            raise InputError(f"the temperature is {temperature}, expected 0 or more")
        if not 0 < top_p <= 1:
            raise InputError(f"top-p is {top_p}, expected more than 0 and at most 1")
        if seed < 0:
            raise InputError(f"the seed is {seed}, expected 0 or more")
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        weights = np.exp((logits.astype(np.float64) - logits.max()) / self._temperature)
        tokens, weights = self._nucleus(weights / weights.sum())
        sums = np.cumsum(weights)
        drawn = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(tokens[min(drawn, len(tokens) - 1)])

    def _nucleus(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens to draw from, and their probabilities."""
        if self._top_p == 1:
            return np.arange(len(weights)), weights
        # All tokens below this have less than 1 - top_p together: the set is among the others.
        tokens = np.flatnonzero(weights >= (1 - self._top_p) / len(weights))
        tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
        sums = np.cumsum(weights[tokens])
        tokens = tokens[: int(np.searchsorted(sums, self._top_p)) + 1]
        return tokens, weights[tokens]
