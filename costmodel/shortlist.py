"""Which candidates are worth measuring where only some can be: the fastest by prediction, each
unlike those before it.

What a prediction is wrong about it is wrong about in all schedules of a tile. Those that differ in
the order of blocks, the number of sums or how far ahead they fetch are closer to each other than
two measurements of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from .interface import MatmulFeatures

Kind = tuple[str, int, int, bool, int, bool]


def shortlist(
    candidates: Sequence[MatmulFeatures], seconds: Sequence[float], count: int
) -> list[int]:
    """Places of up to `count` candidates by their predicted `seconds`, the fastest first: the best
    of each kind, then others."""
    kinds: dict[Kind, int] = {}
    order = sorted(range(len(candidates)), key=seconds.__getitem__)
    for place in order:
        kinds.setdefault(_kind(candidates[place]), place)
    unlike = list(kinds.values())
    others = [place for place in order if place not in unlike]
    return [*unlike, *others][:count]


def _kind(f: MatmulFeatures) -> Kind:
    return f.strategy, f.tile_m, f.tile_n, f.decode_once, f.block_k, f.prefetch > 0
