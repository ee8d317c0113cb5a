"""Random graphs: `grow` draws one of many short chains of operators, with what it must give."""

from __future__ import annotations

import random

from . import elementwise, numeric, shapes
from .draft import ALL, STEPS, Draft, Step

__all__ = ["Draft", "grow"]

# Families of steps, by their modules, and how often each is taken.
_SHARES = {elementwise: 4, shapes: 3, numeric: 4}


def grow(choose: random.Random, chains: int, length: int = 6) -> Draft:
    """`chains` chains of up to `length` steps, each from an input, or from what another made."""
    draft = Draft(choose)
    for _ in range(chains):
        start = choose.choice(draft.values) if draft.values and draft.coin(0.3) else None
        dtype = choose.choice(["float32"] * 8 + ["int64", "bool", "int32", *ALL])
        value = start or draft.input(dtype, draft.shape())
        for _ in range(choose.randint(1, length)):
            value = _step(choose)(draft, value) or value
    return draft


def _step(choose: random.Random) -> Step:
    [family] = choose.choices(list(_SHARES), list(_SHARES.values()))
    return choose.choice([step for step in STEPS if step.__module__ == family.__name__])
