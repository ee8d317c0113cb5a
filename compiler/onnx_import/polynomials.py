"""Integer polynomials over unknown sizes: how two ways to compute a size are found to be equal."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

# A polynomial maps monomials (sorted tuples of atom numbers) to coefficients; zeros are left out.
Polynomial = dict[tuple[int, ...], int]


def constant(value: int) -> Polynomial:
    return {(): value} if value else {}


def add(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    total = dict(a)
    for monomial, coefficient in b.items():
        total[monomial] = total.get(monomial, 0) + sign * coefficient
    return {monomial: c for monomial, c in total.items() if c}


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            monomial = tuple(sorted(left + right))
            total[monomial] = total.get(monomial, 0) + x * y
    return {monomial: c for monomial, c in total.items() if c}


def divide(a: Polynomial, b: Polynomial) -> Polynomial | None:
    """a / b where b is one monomial that divides every one of a, else None."""
    if len(b) != 1:
        return None
    ((atoms, factor),) = b.items()
    result: Polynomial = {}
    for monomial, coefficient in a.items():
        rest = list(monomial)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        result[tuple(rest)] = coefficient // factor
    return result


def product(factors: Iterable[Polynomial]) -> Polynomial:
    return reduce(multiply, factors, constant(1))
