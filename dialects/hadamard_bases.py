"""Hadamard matrices whose order is 4 times an odd number: what larger ones are products of.

For each order the first of these that there is:

- Paley's first construction, order q + 1, and second, 2 (q + 1), q a prime or, for the second, a
  power of one (R. E. A. C. Paley, "On orthogonal matrices", 1933);
- Williamson's, order 4 n, from four symmetric circulants (J. Williamson, "Hadamard's determinant
  theorem and the sum of four squares", 1944; 92: Baumert, Golomb and Hall, 1962).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Signs = NDArray[np.int8]

# The first rows of Williamson's A, B, C, D, up to their middle: element j equals element n - j.
_WILLIAMSON = {
    92: ("++---+---+-+", "+-++-++--+++", "+++---++-+-+", "+++-+++-+---"),
    116: ("+++---++--+-+--", "+-+---++--+-+++", "++++-++-+---+++", "++--+--+-+++-++"),
    156: (
        "+++--+-+-----+--++--",
        "+++--++-+---+-+--+--",
        "++++---+--++----+-+-",
        "+---++-+-+-----+++-+",
    ),
    172: (
        "++---++++-+--+--++----",
        "+++-+-++--+-+-++++-+--",
        "++-++++++----+-+--++-+",
        "+---++--++++-+-+++-++-",
    ),
}


def _prime_power(q: int) -> tuple[int, int]:
    """`(p, e)` with q = p^e, e at most 3; e is 0 where q is none or a higher power."""
    smallest = next((p for p in range(2, q + 1) if q % p == 0), 0)
    for exponent in (1, 2, 3):
        if smallest and smallest**exponent == q:
            return smallest, exponent
    return smallest, 0


def _construction(order: int) -> str | None:
    """How the matrix of an order is made; None where no construction gives one."""
    first, second = _prime_power(order - 1), _prime_power(order // 2 - 1)
    if order % 8 != 4:
        return None
    if first[1] == 1:  # order - 1 is 3 mod 4
        return "paley 1"
    if second[1]:  # order / 2 - 1 is 1 mod 4
        return "paley 2"
    return "williamson" if order in _WILLIAMSON else None


def orders(limit: int) -> tuple[int, ...]:
    """All orders up to `limit` that have a matrix, beginning with 1."""
    return (1, *(order for order in range(12, limit + 1, 8) if _construction(order)))


@lru_cache
def base_matrix(order: int) -> Signs:
    """A matrix of +-1, read-only. Raises ValueError for an order without one."""
    kind = _construction(order)
    if order == 1:
        matrix = np.ones((1, 1), np.int8)
    elif kind == "paley 1":
        matrix = _paley_1(order - 1)
    elif kind == "paley 2":
        matrix = _paley_2(order // 2 - 1)
    elif kind == "williamson":
        matrix = _williamson(_WILLIAMSON[order])
    else:
        raise ValueError(f"no construction of a Hadamard matrix of order {order} is known here")
    matrix.flags.writeable = False
    return matrix


def _paley_1(q: int) -> Signs:
    """Order q + 1 for q = 3 mod 4: I + S with S skew."""
    s = np.ones((q + 1, q + 1), np.int8)
    s[1:, 0] = -1
    s[0, 0] = 0
    s[1:, 1:] = _jacobsthal(q)
    return s + np.eye(q + 1, dtype=np.int8)


def _paley_2(q: int) -> Signs:
    """Order 2 (q + 1) for q = 1 mod 4: a symmetric conference matrix, doubled."""
    c = np.ones((q + 1, q + 1), np.int8)
    c[0, 0] = 0
    c[1:, 1:] = _jacobsthal(q)
    zero_becomes = np.array([[1, -1], [-1, -1]], np.int8)
    one_becomes = np.array([[1, 1], [1, -1]], np.int8)
    return np.kron(np.eye(q + 1, dtype=np.int8), zero_becomes) + np.kron(c, one_becomes)


def _jacobsthal(q: int) -> Signs:
    """Q[i, j] = 1 where j - i is a square of the field of q elements, -1 where it is none, 0 for
    i = j. Elements are numbered by their digits to the base p, q = p^e."""
    p, exponent = _prime_power(q)
    digits = np.array([[i // p**d % p for d in range(exponent)] for i in range(q)])
    character = np.full(q, -1, np.int8)
    character[[_number(_product(x, x, p), p) for x in digits[1:]]] = 1
    character[0] = 0
    differences = (digits[None, :] - digits[:, None]) % p
    return character[differences @ p ** np.arange(exponent)]


def _number(digits: Sequence[int], p: int) -> int:
    return sum(int(digit) * p**i for i, digit in enumerate(digits))


def _product(a: Sequence[int], b: Sequence[int], p: int) -> list[int]:
    """The product of two polynomials over the integers modulo p, lowest power first, modulo an
    irreducible one of their degree."""
    degree = len(a)
    product = [0] * (2 * degree - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] = (product[i + j] + int(x) * int(y)) % p
    modulus = _irreducible(p, degree)
    for power in reversed(range(degree, len(product))):
        for i, coefficient in enumerate(modulus):
            product[power - degree + i] -= product[power] * coefficient
        product[power] = 0
    return [x % p for x in product[:degree]]


@lru_cache
def _irreducible(p: int, degree: int) -> tuple[int, ...]:
    """The coefficients below the leading one of the first monic polynomial without a root: up to
    degree 3 it is irreducible."""
    for number in range(p**degree):
        low = tuple(number // p**d % p for d in range(degree))
        if degree == 1 or all(
            (x**degree + sum(c * x**i for i, c in enumerate(low))) % p for x in range(p)
        ):
            return low
    raise AssertionError(f"no irreducible polynomial of degree {degree} modulo {p}")


def _williamson(halves: Sequence[str]) -> Signs:
    """Four circulants, which commute and whose squares sum to 4 n, as a quaternion's matrix."""
    a, b, c, d = (_circulant([1 if sign == "+" else -1 for sign in half]) for half in halves)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])


def _circulant(half: list[int]) -> Signs:
    row = np.array([*half, *reversed(half[1:])], np.int8)
    i = np.arange(len(row))
    return row[(i[None, :] - i[:, None]) % len(row)]
