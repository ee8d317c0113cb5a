"""Integers of a model as polynomials over its named sizes.

A dimension such as `past + seq`, an element of a shape tensor, an index computed from both: all are
`Dim`, a polynomial with integer coefficients over atoms. An atom is a named size of an input, an
integer that only a run knows (`Opaque`), or a function of other `Dim`s that no polynomial expresses
(`Call`: a floor division, a minimum, a choice). Equal `Dim`s are equal for every run.

Nothing here knows MLIR: `emit.py` turns a `Dim` into an SSA value where one is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import count
from math import prod
from typing import ClassVar
from weakref import WeakValueDictionary


@dataclass(frozen=True, order=True)
class Named:
    """A size of an input: never negative."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class Opaque:
    """An integer that is known to a run only. `natural`: it is a size, so never negative."""

    number: int
    natural: bool = True

    def __str__(self) -> str:
        return f"?{self.number}"


class Call:
    """`function` of `arguments`; `FUNCTIONS` says what each means.

    Equal calls are one object. Sizes that are made from each other, layer after layer, share their
    parts: written out, they would grow exponentially.
    """

    __slots__ = ("__weakref__", "_natural", "arguments", "function", "number", "text")

    _known: ClassVar[WeakValueDictionary[tuple[str, tuple[Dim, ...]], Call]] = WeakValueDictionary()
    _numbers: ClassVar[Iterator[int]] = count()

    function: str
    arguments: tuple[Dim, ...]
    number: int
    text: str

    def __new__(cls, function: str, arguments: tuple[Dim, ...]) -> Call:
        call = cls._known.get((function, arguments))
        if call is None:
            call = super().__new__(cls)
            call.function, call.arguments = function, arguments
            call.number = next(cls._numbers)
            inner = ", ".join(map(str, arguments))
            whole = f"{function}({inner})"
            call.text = whole if len(whole) <= MAX_TEXT else f"{function}(..)#{call.number}"
            call._natural = None
            cls._known[function, arguments] = call
        return call

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Call({self.text})"

    @property
    def is_natural(self) -> bool:
        """Whether it is surely not negative."""
        if self._natural is None:
            self._natural = _call_natural(self)
        return self._natural

    _natural: bool | None


# A longer text of a call is not shown.
MAX_TEXT = 120
# A product of sums that would have more terms is a call: factor by factor they grow exponentially.
MAX_TERMS = 64

Atom = Named | Opaque | Call
Monomial = tuple[Atom, ...]  # atoms in order


def _order(atom: Atom) -> tuple[int, str, int]:
    """Names first, as people read them; the others as they were made."""
    if isinstance(atom, Named):
        return 0, atom.name, 0
    return (1 if isinstance(atom, Opaque) else 2), "", atom.number


@dataclass(frozen=True)
class Dim:
    """A polynomial: monomials and their coefficients, none 0, in a fixed order."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def of(value: int | Dim | Atom) -> Dim:
        if isinstance(value, Dim):
            return value
        if isinstance(value, (Named, Opaque, Call)):
            return Dim((((value,), 1),))
        return Dim((((), int(value)),)) if value else ZERO

    @property
    def value(self) -> int | None:
        """The number, None where it depends on an atom."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    @property
    def is_static(self) -> bool:
        return self.value is not None

    def __add__(self, other: int | Dim) -> Dim:
        return _collect((*self.terms, *Dim.of(other).terms))

    def __radd__(self, other: int | Dim) -> Dim:
        return self + other

    def __neg__(self) -> Dim:
        return Dim(tuple((monomial, -factor) for monomial, factor in self.terms))

    def __sub__(self, other: int | Dim) -> Dim:
        return self + -Dim.of(other)

    def __rsub__(self, other: int | Dim) -> Dim:
        return Dim.of(other) - self

    def __mul__(self, other: int | Dim) -> Dim:
        other = Dim.of(other)
        if min(len(self.terms), len(other.terms)) > 1 and (
            len(self.terms) * len(other.terms) > MAX_TERMS
        ):
            return Dim.of(Call("mul", (self, other)))
        return _collect(
            (_sorted(left + right), x * y) for left, x in self.terms for right, y in other.terms
        )

    def __rmul__(self, other: int | Dim) -> Dim:
        return self * other

    def __floordiv__(self, other: int | Dim) -> Dim:
        """Rounded down. By 0 it is 0, as at run time (`passes/guard_divisions.py`)."""
        return floordiv(self, Dim.of(other))

    def __mod__(self, other: int | Dim) -> Dim:
        return self - (self // other) * other

    def atoms(self) -> set[Atom]:
        return {atom for monomial, _ in self.terms for atom in monomial}

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        text = " + ".join(_term_text(monomial, factor) for monomial, factor in self.terms)
        return text.replace("+ -", "- ")

    def __repr__(self) -> str:
        return f"Dim({self})"


ZERO = Dim(())
ONE = Dim((((), 1),))


def _term_text(monomial: Monomial, factor: int) -> str:
    names = [str(atom) for atom in monomial]
    if not names:
        return str(factor)
    sign = "-" if factor == -1 else ""
    return "*".join([sign + names[0], *names[1:]] if factor in (1, -1) else [str(factor), *names])


def _sorted(monomial: Monomial) -> Monomial:
    return tuple(sorted(monomial, key=_order)) if len(monomial) > 1 else monomial


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        total[monomial] = total.get(monomial, 0) + factor
    kept = [(monomial, factor) for monomial, factor in total.items() if factor]
    # Constants last, as people write sums.
    kept.sort(key=lambda term: (not term[0], [_order(atom) for atom in term[0]]))
    return Dim(tuple(kept))


def replaced(dim: Dim, known: Callable[[Atom], Dim | None]) -> Dim:
    """The polynomial with atoms replaced by what `known` says they are equal to."""

    done: dict[Atom, Dim] = {}  # calls share their parts

    def of_atom(atom: Atom) -> Dim:
        if atom not in done:
            done[atom] = new(atom)
        return done[atom]

    def new(atom: Atom) -> Dim:
        found = known(atom)
        if found is not None:
            return found
        if not isinstance(atom, Call):
            return Dim.of(atom)
        arguments = tuple(map(of_dim, atom.arguments))
        return Dim.of(atom) if arguments == atom.arguments else call(atom.function, *arguments)

    def of_dim(dim: Dim) -> Dim:
        if dim.is_static:
            return dim
        terms = (product(map(of_atom, monomial)) * factor for monomial, factor in dim.terms)
        return sum(terms, ZERO)

    return of_dim(dim)


def single_atom(dim: Dim) -> Atom | None:
    """The atom that a polynomial is, if it is no more than one."""
    if len(dim.terms) != 1:
        return None
    ((atoms, factor),) = dim.terms
    return atoms[0] if factor == 1 and len(atoms) == 1 else None


def all_atoms(dim: Dim) -> Iterator[Atom]:
    """The atoms of a polynomial and of all that its calls are made of, each once."""
    seen: set[Atom] = set()
    pending = list(dim.atoms())
    while pending:
        atom = pending.pop()
        if atom in seen:
            continue
        seen.add(atom)
        yield atom
        if isinstance(atom, Call):
            pending.extend(inner for each in atom.arguments for inner in each.atoms())


def mentions(dim: Dim, atom: Atom) -> bool:
    """Whether a polynomial depends on an atom."""
    return atom in all_atoms(dim)


def are_one_together(a: Dim, b: Dim) -> bool:
    """Whether one of two sizes is 1 exactly if the other is.

    So of `n` and `min(n, 512)`, the positions that a table of 512 has for n tokens.
    """
    for size, other in ((a, b), (b, a)):
        atom = single_atom(other)
        if isinstance(atom, Call) and atom.function == "min" and size in atom.arguments:
            rest = [argument for argument in atom.arguments if argument != size]
            if all((argument.value or 0) > 1 for argument in rest):
                return True
    return False


def product(dims: Iterable[Dim]) -> Dim:
    return reduce(lambda a, b: a * b, dims, ONE)


def exact_quotient(dividend: Dim, divisor: Dim) -> Dim | None:
    """The polynomial q with q * divisor == dividend, if there is one: long division."""
    if not divisor.terms:
        return None
    atoms = sorted(dividend.atoms() | divisor.atoms(), key=_order)

    def order(term: tuple[Monomial, int]) -> tuple[int, list[int]]:
        """Graded lexicographic, which products keep."""
        return len(term[0]), [term[0].count(atom) for atom in atoms]

    leading, factor = max(divisor.terms, key=order)
    quotient, rest = ZERO, dividend
    while rest.terms:
        monomial, coefficient = max(rest.terms, key=order)
        part = _without(monomial, leading)
        if part is None or coefficient % factor:
            return None
        term = Dim(((part, coefficient // factor),))
        quotient, rest = quotient + term, rest - term * divisor
    return quotient


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    """A monomial divided by another; None where that leaves a fraction."""
    rest = list(monomial)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def floordiv(dividend: Dim, divisor: Dim) -> Dim:
    if divisor.value == 0:
        return ZERO
    exact = exact_quotient(dividend, divisor)
    if exact is not None:
        return exact
    number = divisor.value
    if number is None:
        return call("floordiv", dividend, divisor)
    if dividend.value is not None:
        return Dim.of(dividend.value // number)
    # floor((n * q + r) / n) = q + floor(r / n)
    whole = [(m, f // number) for m, f in dividend.terms]
    rest = [(m, f - f // number * number) for m, f in dividend.terms]
    remainder = _collect(rest)
    if remainder.value is not None:
        return _collect(whole) + remainder.value // number
    return _collect(whole) + Dim.of(Call("floordiv", (remainder, divisor)))


def ceildiv(dividend: Dim, divisor: Dim | int) -> Dim:
    return -((-dividend) // divisor)


def truncdiv(dividend: Dim, divisor: Dim) -> Dim:
    """Rounded towards zero, as ONNX divides integers."""
    if is_natural(dividend) and is_natural(divisor):
        return dividend // divisor
    return call("truncdiv", dividend, divisor)


def is_natural(dim: Dim) -> bool:
    """Whether it is surely not negative, because nothing in it is."""
    return all(factor > 0 and all(map(_atom_natural, atoms)) for atoms, factor in dim.terms)


def _atom_natural(atom: Atom) -> bool:
    if isinstance(atom, Named):
        return True
    return atom.natural if isinstance(atom, Opaque) else atom.is_natural


def _call_natural(call: Call) -> bool:
    arguments = call.arguments
    if call.function in TRUTHS:
        return True
    if call.function == "max":
        return any(map(is_natural, arguments))
    if call.function in ("select", "broadcast"):
        return all(map(is_natural, arguments[-2:]))
    return all(map(is_natural, arguments))


def equal(a: Dim, b: Dim) -> bool | None:
    """Whether they are equal: for all runs, for none, or None where that depends on the run."""
    difference = a - b
    if not difference.terms:
        return True
    if is_natural(difference - 1) or is_natural(-difference - 1) or difference.value is not None:
        return False
    return None


def less(a: Dim, b: Dim) -> bool | None:
    """Whether `a < b`; None where that depends on the run."""
    if is_natural(b - a - 1):
        return True
    return False if is_natural(a - b) else None


def call(function: str, *arguments: Dim) -> Dim:
    """`function` of `arguments`, simplified where that can be."""
    numbers = [argument.value for argument in arguments]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        return Dim.of(FUNCTIONS[function](*known))
    rule = _SIMPLIFIED.get(function)
    simpler = rule(*arguments) if rule is not None else None
    return Dim.of(Call(function, arguments)) if simpler is None else simpler


def minimum(a: Dim, b: Dim) -> Dim:
    return call("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    return call("max", a, b)


def select(condition: Dim, a: Dim, b: Dim) -> Dim:
    """`a` where `condition` is not 0, else `b`."""
    return call("select", condition, a, b)


def is_equal(a: Dim, b: Dim) -> Dim:
    """1 where they are equal, else 0."""
    return call("eq", a, b)


def is_less(a: Dim, b: Dim) -> Dim:
    return call("lt", a, b)


def negated(condition: Dim) -> Dim:
    return call("not", condition)


def clamp(value: Dim, low: Dim | int, high: Dim | int) -> Dim:
    return minimum(maximum(value, Dim.of(low)), Dim.of(high))


def _truncated(a: int, b: int) -> int:
    return 0 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


# What a Call means; booleans are 0 and 1.
FUNCTIONS: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b if b else 0,
    "truncdiv": _truncated,
    "mul": lambda a, b: a * b,
    "min": min,
    "max": max,
    "eq": lambda a, b: int(a == b),
    "lt": lambda a, b: int(a < b),
    "not": lambda a: int(not a),
    "and": lambda a, b: int(bool(a and b)),
    "or": lambda a, b: int(bool(a or b)),
    "select": lambda c, a, b: a if c else b,
    # The size that results where sizes a and b are broadcast together.
    "broadcast": lambda a, b: b if a == 1 else a,
}


# Those whose value is 0 or 1.
TRUTHS = frozenset({"eq", "lt", "not", "and", "or"})


def _as_number(truth: bool | None) -> Dim | None:
    return None if truth is None else Dim.of(int(truth))


def _min(a: Dim, b: Dim) -> Dim | None:
    below = less(a, b + 1)
    if below is not None:
        return a if below else b
    above = less(b, a + 1)
    return None if above is None else (b if above else a)


def _max(a: Dim, b: Dim) -> Dim | None:
    smaller = _min(a, b)
    return None if smaller is None else a + b - smaller


def _select(condition: Dim, a: Dim, b: Dim) -> Dim | None:
    if a == b:
        return a
    number = condition.value
    return None if number is None else (a if number else b)


def _broadcast(a: Dim, b: Dim) -> Dim | None:
    if a == b or b == ONE:
        return a
    if a == ONE:
        return b
    # A size that is neither 1 nor 0 is the result's; the other is it, or 1.
    for size in (a, b):
        if size.value is not None or is_natural(size - 2):
            return size
    return None


def _not(a: Dim) -> Dim | None:
    (atom,) = a.atoms() if len(a.atoms()) == 1 else (None,)
    if isinstance(atom, Call) and atom.function == "not" and a == Dim.of(atom):
        return _truth(atom.arguments[0])
    return None


def _truth(a: Dim) -> Dim:
    """1 where `a` is not 0, else 0."""
    atom = single_atom(a)
    return a if isinstance(atom, Call) and atom.function in TRUTHS else negated(is_equal(a, ZERO))


def _and(a: Dim, b: Dim) -> Dim | None:
    for first, second in ((a, b), (b, a)):
        if first.value is not None:
            return _truth(second) if first.value else ZERO
    return _truth(a) if a == b else None


def _or(a: Dim, b: Dim) -> Dim | None:
    for first, second in ((a, b), (b, a)):
        if first.value is not None:
            return ONE if first.value else _truth(second)
    return _truth(a) if a == b else None


_SIMPLIFIED: dict[str, Callable[..., Dim | None]] = {
    "mul": lambda a, b: a * b,
    "min": _min,
    "max": _max,
    "select": _select,
    "broadcast": _broadcast,
    "eq": lambda a, b: _as_number(equal(a, b)),
    "lt": lambda a, b: _as_number(less(a, b)),
    "not": _not,
    "and": _and,
    "or": _or,
}

_NAME = re.compile(r"[A-Za-z_][\w.]*")
_NUMBER = re.compile(r"\d+")


def parse_dim(text: str) -> Dim:
    """A size as a model names it: sums and products of names and numbers (`past + seq`, `2*n`).

    Any other text is one name.
    """
    terms = []
    for term in text.split("+"):
        factors = [factor.strip() for factor in term.split("*")]
        if not all(_NAME.fullmatch(f) or _NUMBER.fullmatch(f) for f in factors):
            return Dim.of(Named(text))
        terms.append(
            product(Dim.of(int(f)) if _NUMBER.fullmatch(f) else Dim.of(Named(f)) for f in factors)
        )
    return sum(terms, ZERO)


def static_product(dims: Iterable[Dim]) -> int | None:
    """The number of elements, None where a size is not known."""
    values = [dim.value for dim in dims]
    known = [value for value in values if value is not None]
    return prod(known) if len(known) == len(values) else None


def evaluate(dim: Dim, values: dict[Atom, int]) -> int:
    """The number for given atoms: the reference for what `emit` builds."""

    def of_atom(atom: Atom) -> int:
        if isinstance(atom, Call):
            return FUNCTIONS[atom.function](*(evaluate(a, values) for a in atom.arguments))
        return values[atom]

    return sum(factor * prod(of_atom(atom) for atom in monomial) for monomial, factor in dim.terms)
