"""How a stored weight becomes codes, which `pack-layouts` makes, one weight at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from abqc.dialects import hadamard
from abqc.dialects.formats import F32, QuantizedTensor, Scheme, quantize_weight

from ..infrastructure import Unit
from .imported_codes import kept_codes


@dataclass(frozen=True)
class Encoding:
    """How a stored weight becomes codes; `imported` ones are kept as the model has them.

    `calibrated` ones lie in the store under `symbol` once calibration has come to them. `balance`
    is where the store has, as f32 [K], the positive factors of the columns, by which what the
    product reads is divided; without them there, or with an empty symbol, all are 1.
    """

    source: str
    scheme: Scheme
    hadamard_block: int = 0
    search: bool = False
    imported: bool = False
    calibrated: bool = False
    balance: str = ""

    @property
    def symbol(self) -> str:
        """The name of the encoded weight: equal encodings of one weight have one."""
        parts = [self.source, self.scheme.text]
        if self.hadamard_block:
            parts.append(f"h{self.hadamard_block}")
        flags = ("search", "imported", "calibrated")
        parts += [word for word in flags if getattr(self, word)]
        if self.balance:
            parts.append(f"by {self.balance}")
        return ".".join(parts)

    def encode(self, store: Any, weight: F32 | None = None) -> QuantizedTensor:
        """The codes; ValueError where the weight has none (NaN, infinities).

        `weight` is what `weight(store)` gave, where that is known: it may be long to compute.
        """
        if self.imported:
            return replace(store.quantized(self.source), scheme=self.scheme)
        if self.calibrated and self.symbol in store:
            return store.quantized(self.symbol)
        weight = self.weight(store) if weight is None else weight
        return quantize_weight(weight, self.scheme, search=self.search)

    def weight(self, store: Any) -> F32:
        """What is encoded: the float weight [N, K], balanced and rotated where activations are."""
        stored = store.get(self.source).reshape(store.shape(self.source)[0], -1)
        weight: F32 = stored.astype(np.float32, copy=False)
        if self.balance in store:
            weight = weight * store.get(self.balance)
        return hadamard.fold(weight, self.hadamard_block) if self.hadamard_block else weight


def encoding_of(
    symbol: str,
    scheme: Scheme | None,
    block: int,
    unit: Unit,
    *,
    search: bool = False,
    calibrated: bool = False,
    reads_floats: bool = False,
    balance: str = "",
) -> Encoding | None:
    """How to encode a weight for which the recipe asks `scheme`; None if it stays float."""
    rounds = reads_floats and unit.known_target.rounds_floats
    kept = kept_codes(symbol, scheme, unit.store, rotated=bool(block), rounds=rounds)
    if kept is not None:
        return Encoding(symbol, kept, imported=True)
    if scheme is None:
        return None
    return Encoding(symbol, scheme, block, search, calibrated=calibrated, balance=balance)
