"""One step of a selective scan, recognized by its equation:

    h' = exp(delta * a) * h + delta * b * x,    y = sum over n of c * h' [+ skip * x]

Whatever the order of axes and of factors: roles are told apart by the indices that an operand has.
n is what the sum runs over, the channel d what `a` has beside n, the batch what `c` has beside n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..loops.elements import (
    Element,
    Expression,
    Index,
    Number,
    Operation,
    Sum,
    Symbol,
    opened,
    operation,
    origin,
    products,
)

GREATER = tuple(f"arith.cmpf predicate={predicate} : i64" for predicate in (2, 3, 8, 9))
# From here on softplus(x) rounds to x in f32: the rest is below e^-17, an ulp is 2^-19.
SOFTPLUS_IS_IDENTITY = 17.0


@dataclass(frozen=True)
class Roles:
    """The symbols of the axes: batch, channel and state. The step has none of its own yet."""

    batch: str
    channel: str
    state: str


@dataclass(frozen=True)
class Step:
    """The operands of one step; `before` and `after` are the state, an element of each."""

    roles: Roles
    before: Element
    after: Element
    x: Element
    delta: Element
    a: Element
    b: Element
    c: Element
    skip: Element | None = None  # a number for each channel
    softplus: bool = False  # of delta

    @property
    def operands(self) -> tuple[Element, ...]:
        given = self.x, self.delta, self.a, self.b, self.c
        return given if self.skip is None else (*given, self.skip)

    def mapped(self, change: Callable[[Element], Element]) -> tuple[Element, ...]:
        """The operands, each changed."""
        return tuple(change(operand) for operand in self.operands)

    def with_operands(self, operands: tuple[Element, ...]) -> Step:
        x, delta, a, b, c, *skip = operands
        changed = replace(self, x=x, delta=delta, a=a, b=b, c=c)
        return replace(changed, skip=skip[0]) if skip else changed

    def renamed(self, state: str) -> Step:
        """With the axis of the state called so."""
        symbols = {self.roles.state: Index(state)}
        step = self.with_operands(self.mapped(lambda operand: operand.at(symbols)))
        before, after = self.before.at(symbols), self.after.at(symbols)
        return replace(step, roles=replace(self.roles, state=state), before=before, after=after)


def match_step(y: Element) -> Step | None:
    """The step whose output is `y`, an element at an index with two symbols; None if none is."""
    whole = operation(y)
    if isinstance(whole, Sum):
        return _match_sum(y, whole)
    if not isinstance(whole, Operation) or whole.name != "arith.addf":
        return None
    for inner, skipped in (whole.operands, whole.operands[::-1]):
        total = operation(inner)
        step = _match_sum(y, total) if isinstance(total, Sum) else None
        for skip, x in _pairs(skipped) if step is not None else ():
            assert step is not None
            if x == step.x and isinstance(skip, Element):
                found = replace(step, skip=skip)
                return found if symbols_of(skip) == [step.roles.channel] else None
    return None


def _match_sum(y: Element, total: Sum) -> Step | None:
    for after, c in _pairs(total.term):
        if isinstance(after, Element) and isinstance(c, Element):
            step = _match(y, total.symbol, after, c)
            if step is not None:
                return _before_softplus(step)
    return None


def _before_softplus(step: Step) -> Step:
    """With the operand whose softplus delta is, if it has the axes of delta."""
    raw = softplus_of(step.delta)
    if raw is None:
        return step
    changed = replace(step, delta=raw, softplus=True)
    return changed if _has_its_axes(changed) else step


def _pairs(product: Expression) -> Iterator[tuple[Expression, Expression]]:
    """All ways to see it as a product of two factors, either of them first."""
    for first, second in products(product, 2):
        yield first, second
        yield second, first


def softplus_of(value: Expression) -> Element | None:
    """The element whose softplus an expression is, in f32; None if it is none."""
    found = operation(value)
    if not isinstance(found, Operation):
        return None
    if found.name == "arith.select":
        condition, large, small = found.operands
        x = softplus_of(small)
        if x is None or not isinstance(large, Element) or origin(large) != x:
            return None
        return x if _is_large(condition, x) else None
    if found.name != "arith.addf":
        return None
    for positive, rest in (found.operands, found.operands[::-1]):
        x = _maximum_with_zero(positive)
        if x is not None and _unary(rest, "math.log1p", "math.exp", "arith.negf", "math.absf") == x:
            return x
    return None


def _match(y: Element, state: str, after: Element, c: Element) -> Step | None:
    update = opened(after)
    if not isinstance(update, Operation) or update.name != "arith.addf":
        return None
    for kept, drive in (update.operands, update.operands[::-1]):
        for decay, before in _pairs(kept):
            power = operation(decay)
            if not isinstance(power, Operation) or power.name != "math.exp":
                continue
            for delta, a in _pairs(power.operands[0]):
                for driven in products(drive, 3):
                    step = _assigned(y, state, (before, after, delta, a, c), driven)
                    if step is not None:
                        return step
    return None


def _assigned(
    y: Element, state: str, known: tuple[Expression, ...], factors: list[Expression]
) -> Step | None:
    """Which factor of what is added is which: delta is one of them."""
    elements = [factor for factor in (*known, *factors) if isinstance(factor, Element)]
    if len(elements) < len(known) + len(factors):
        return None
    before, after, delta, a, c, *rest = elements
    driven = [factor for factor in rest if factor != delta]
    roles = _roles(y, state, a)
    if roles is None or len(driven) != 2:
        return None
    for x, b in (driven, driven[::-1]):
        step = Step(roles, before, after, x, delta, a, b, c)
        if _has_its_axes(step):
            return step
    return None


def _roles(y: Element, state: str, a: Element) -> Roles | None:
    rows = [symbol for symbol in symbols_of(y) if isinstance(symbol, str)]
    channels = [symbol for symbol in rows if symbol in symbols_of(a)]
    if len(rows) != 2 or len(channels) != 1:
        return None
    (batch,) = [symbol for symbol in rows if symbol not in channels]
    return Roles(batch, channels[0], state)


def _has_its_axes(step: Step) -> bool:
    """Whether every operand has the axes of its role, each once, and no others of the state's."""
    batch, channel, state = step.roles.batch, step.roles.channel, step.roles.state
    wanted = (
        (step.before, {batch, channel, state}),
        (step.after, {batch, channel, state}),
        (step.x, {batch, channel}),
        (step.delta, {batch, channel}),
        (step.a, {channel, state}),
        (step.b, {batch, state}),
        (step.c, {batch, state}),
    )
    every = {batch, channel, state}
    return all(
        set(symbols_of(element)) & every == axes
        and len(symbols_of(element)) == len(set(symbols_of(element)))
        for element, axes in wanted
    )


def depends_on_step(step: Step, symbol: str) -> bool:
    """Whether `a` is the same in all steps, and the others have the step for one of their axes."""
    known = {step.roles.batch, step.roles.channel, step.roles.state, symbol}
    return (
        all(set(symbols_of(operand)) <= known for operand in step.operands)
        and all(symbol not in symbols_of(o) for o in step.operands if o in (step.a, step.skip))
        and all(symbols_of(o).count(symbol) == 1 for o in (step.x, step.delta, step.b, step.c))
    )


def symbols_of(element: Element) -> list[Symbol]:
    return [index.symbol for index in element.index if index.symbol is not None]


def _is_large(condition: Expression, x: Element) -> bool:
    found = operation(condition)
    if not isinstance(found, Operation) or found.name not in GREATER:
        return False
    left, bound = found.operands
    number = bound if isinstance(bound, Number) else operation(bound)
    is_x = isinstance(left, Element) and origin(left) == x
    return is_x and isinstance(number, Number) and number.value >= SOFTPLUS_IS_IDENTITY


def _maximum_with_zero(value: Expression) -> Element | None:
    found = operation(value)
    if not isinstance(found, Operation) or found.name != "arith.maximumf":
        return None
    elements = [part for part in found.operands if isinstance(part, Element)]
    if len(elements) != 1 or Number(0.0) not in found.operands:
        return None
    return origin(elements[0])


def _unary(value: Expression, *names: str) -> Element | None:
    """The element to which operations are applied, the outermost first."""
    for name in names:
        found = operation(value)
        if not isinstance(found, Operation) or found.name != name:
            return None
        (value,) = found.operands
    return origin(value) if isinstance(value, Element) else None
