"""Sizes of a signature that are made of others: `past + seq`, `2*n - 1`.

Their text is a sum of products of names and numbers, as the front end prints it. A text that is no
such expression of sizes that inputs have by themselves is a name like any other.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_TERM = re.compile(r"\s*([+-]?)\s*([^+\-\s][^+\-]*?)\s*(?=[+-]|$)")
_NUMBER = re.compile(r"\d{1,18}")


@dataclass(frozen=True)
class Term:
    """`factor` times the sizes of these names."""

    factor: int
    names: tuple[str, ...]


def parse(text: str, names: Collection[str]) -> tuple[Term, ...] | None:
    """The terms of an expression of other sizes, which are called `names`; None for other texts."""
    terms = []
    at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None or (at and not match[1]):
            return None
        factors = [factor.strip() for factor in match[2].split("*")]
        numbers = [int(f) for f in factors if _NUMBER.fullmatch(f)]
        named = tuple(f for f in factors if not _NUMBER.fullmatch(f))
        if not all(name in names and name != text for name in named):
            return None
        product = -1 if match[1] == "-" else 1
        for number in numbers:
            product *= number
        terms.append(Term(product, named))
        at = match.end()
    return tuple(terms) if any(term.names for term in terms) else None
