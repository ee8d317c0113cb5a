"""Which weights stay the codes that the model has, whatever the recipe asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from abqc.dialects.formats import Scheme


def kept_codes(
    symbol: str, scheme: Scheme | None, store: Any, *, rotated: bool, rounds: bool = False
) -> Scheme | None:
    """The scheme of a stored weight that is codes of the model and stays them; None for others.

    Where the recipe asks for fewer bits (`scheme`; None: for floats) or rotates what the product
    reads (`rotated`), a weight is encoded anew. Ternary ones are not rotated: that would make them
    floats again, of which two bits hold little. They are stored as `t` or `t5`, as the recipe says.
    `rounds`: kernels of codes would round what the product reads, which nobody asked for where both
    the model and the recipe have floats.
    """
    imported = store.quantized(symbol)
    if imported is None:
        return None
    if rounds and scheme is None and store.from_floats(symbol):
        return None
    kept: Scheme = imported.scheme
    if scheme is not None and scheme.bits < kept.bits:
        return None
    if kept.format.kind != "ternary":
        return None if rotated else kept
    if scheme is not None and scheme.format.kind == "ternary":
        return replace(kept, format=scheme.format)
    return kept
