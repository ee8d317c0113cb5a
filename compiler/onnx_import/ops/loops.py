"""Loop and Scan: scf.for where the number of iterations is known before, else scf.while."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..building.looping import Iteration, Loop
from ..building.shaping import concat, pad, reshape, slice_axes, slice_axis, transpose, unsqueeze
from ..building.structure import Growing, Stacked, flattened, rebuilt
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, I64
from ..values.symbolic import ONE, Dim
from ..values.value import AnyValue, SequenceValue, Value
from .control_flow import single_truth

# Whether to go on, the carried values, and a row for each collection, of an iteration.
Body = Callable[[Dim, Sequence[AnyValue]], tuple[Dim, Sequence[AnyValue], list[Value]]]


@lowers("Loop")
def lower_loop(node: Node) -> list[AnyValue]:
    graph = node.graph("body")
    inits = [value for value in node.inputs[2:] if value is not None]
    collected = len(graph.output) - 1 - len(inits)
    if collected < 0 or len(graph.input) != len(inits) + 2:
        raise node.error(
            f"its body has {len(graph.input)} inputs and {len(graph.output)} outputs, for "
            f"{len(inits)} carried values"
        )
    trip = _trip_count(node)
    start = single_truth(node, node.input(1)) if node.given(1) else ONE

    def body(at: Dim, values: Sequence[AnyValue]) -> tuple[Dim, list[AnyValue], list[Value]]:
        counter = node.b.content([at], I64, [])
        go_on = node.b.content([ONE], BOOL, [])
        returned = node.lowering.subgraph(graph, [counter, go_on, *values], node)
        condition = returned[0]
        if not isinstance(condition, Value) or condition.dtype is not BOOL:
            raise node.error("the first output of its body must be a bool")
        # Without a condition to begin with, that of the body counts none the less.
        return (
            single_truth(node, condition),
            returned[1 : 1 + len(inits)],
            [_tensor(node, row) for row in returned[1 + len(inits) :]],
        )

    return run(node, inits, trip, start, body)


def _trip_count(node: Node) -> Dim | None:
    limit = node.optional(0)
    if limit is None:
        return None
    if limit.symbols is not None:
        if len(limit.symbols) != 1:
            raise node.error(f"its trip count must have one element, it is {limit}")
        return limit.symbols[0]
    for dim in limit.dims:
        node.b.require_equal(dim, ONE, "a trip count must have one element")
    return node.b.run_time(node.b.item(limit, *[0] * limit.rank), natural=False)


def _tensor(node: Node, value: AnyValue) -> Value:
    if not isinstance(value, Value):
        raise node.error("its body collects sequences or optionals: only tensors can be stacked")
    return value


class _Grows(Exception):
    """Carried value `at`, a sequence, is returned with more tensors at its end."""

    def __init__(self, at: int) -> None:
        self.at = at


def run(
    node: Node, inits: Sequence[AnyValue], trip: Dim | None, start: Dim, body: Body
) -> list[AnyValue]:
    """The carried values and the collections of a loop over any values."""
    growing: frozenset[int] = frozenset()
    while True:
        try:
            return _run(node, inits, trip, start, body, growing)
        except _Grows as found:
            growing |= {found.at}


def _run(
    node: Node,
    inits: Sequence[AnyValue],
    trip: Dim | None,
    start: Dim,
    body: Body,
    growing: frozenset[int],
) -> list[AnyValue]:
    """As `run`; what iterations add to the sequences `growing` (by number) is collected."""
    shapes = [value for at, value in enumerate(inits) if at not in growing]
    leaves = [leaf for init in shapes for leaf in flattened(init)]
    added: dict[int, int] = {}  # by sequence, in an iteration

    def flat_body(at: Dim, values: Sequence[Value]) -> Iteration:
        rest = iter(values)
        given = [Growing() if k in growing else rebuilt(init, rest) for k, init in enumerate(inits)]
        condition, returned, rows = body(at, given)
        flat: list[Value] = []
        more: list[Value] = []
        for k, (before, after) in enumerate(zip(given, returned, strict=True)):
            if isinstance(before, Growing):
                if not isinstance(after, Growing):
                    raise node.error("a sequence that it carries both grows and is made anew")
                added[k] = len(after.added)
                more += after.added
                continue
            if _grows(before, after):
                raise _Grows(k)
            flat += flattened(after)
        if len(flat) != len(leaves):
            raise node.error(
                "a sequence or an optional that it carries changes its length",
                hint="collect tensors of equal shapes as a scan output of the loop",
            )
        return Iteration(condition, flat, [*rows, *more])

    values, rows = Loop(node.b, leaves, trip, start, flat_body).emit()
    rest, collected = iter(values), len(rows) - sum(added.values())
    extra = iter(rows[collected:])
    results: list[AnyValue] = []
    for k, init in enumerate(inits):
        if k not in growing:
            results.append(rebuilt(init, rest))
            continue
        assert isinstance(init, SequenceValue)
        results.append(_stacked(node, init, [next(extra) for _ in range(added[k])]))
    return [*results, *rows[:collected]]


def _grows(before: AnyValue, after: AnyValue) -> bool:
    if not isinstance(before, SequenceValue) or not isinstance(after, SequenceValue):
        return False
    if isinstance(before, (Stacked, Growing)) or isinstance(after, (Stacked, Growing)):
        return False
    known, count = list(after.elements), len(before.elements)
    same = zip(known, before.elements, strict=False)
    return len(known) > count and all(x is y for x, y in same)


def _stacked(node: Node, init: SequenceValue, rows: Sequence[Value]) -> SequenceValue:
    """A sequence behind the loop; each iteration has added an element of each of `rows`."""
    if not rows:
        return init
    if isinstance(init, Stacked):
        raise node.error("a sequence that another loop has made cannot grow")
    first = rows[0]
    if any(row.dims != first.dims or row.dtype != first.dtype for row in rows):
        raise node.error("it adds tensors of different shapes or types to a sequence")
    wide = concat(node.b, [unsqueeze(node.b, row, [1]) for row in rows], 1)
    flat = reshape(node.b, wide, [first.dims[0] * len(rows), *first.dims[1:]])
    return Stacked(init.elements, flat)


@lowers("Scan", since=9)
def lower_scan(node: Node) -> list[AnyValue]:
    count = node.int("num_scan_inputs")
    graph = node.graph("body")
    tensors = node.tensors()
    states, scanned = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
    if not 0 < count <= len(tensors):
        raise node.error(f"it scans {count} of {len(tensors)} inputs")
    outputs = len(graph.output) - len(states)
    if outputs < 0:
        raise node.error(f"its body returns {len(graph.output)} of {len(states)} states")
    axes = _for_each(node, "scan_input_axes", count)
    backwards = _for_each(node, "scan_input_directions", count)
    result_axes = _for_each(node, "scan_output_axes", outputs)
    reversed_results = _for_each(node, "scan_output_directions", outputs)
    axes = [node.counted(axis, x.rank) for axis, x in zip(axes, scanned, strict=True)]
    length = scanned[0].dims[axes[0]]
    for x, axis in zip(scanned, axes, strict=True):
        node.b.require_equal(x.dims[axis], length, "the inputs that it scans must be of one length")
    results = _scan(node, states, list(zip(scanned, axes, backwards, strict=True)), length)
    collected = [
        _directed(node, rows, axis, backward)
        for rows, axis, backward in zip(
            results[len(states) :], result_axes, reversed_results, strict=True
        )
    ]
    return [*results[: len(states)], *collected]


def _for_each(node: Node, name: str, count: int) -> list[int]:
    """Integers of an attribute, one for each input or output; 0 where it is left out."""
    numbers = node.ints(name, [0] * count)
    if len(numbers) != count:
        raise node.error(f"attribute '{name}' has {len(numbers)} integers, expected {count}")
    return numbers


@lowers("Scan")
def lower_batched_scan(node: Node) -> list[AnyValue]:
    """Version 8: axis 0 of everything is the batch, axis 1 of what is scanned are the steps."""
    count = node.int("num_scan_inputs")
    b, lengths = node.b, node.optional(0)
    given = [node.input(i) for i in range(1, len(node.inputs))]
    made = [_made(node, x) for x in given]
    if not 0 < count <= len(made) or any(x.rank < 2 for x in made[len(made) - count :]):
        raise node.error("it needs inputs to scan, of a batch and steps each")
    states, scanned = made[: len(made) - count], made[len(made) - count :]
    backwards = _for_each(node, "directions", count)
    batch, steps = made[0].dims[0], scanned[0].dims[1]
    for x in made:
        b.require_equal(x.dims[0], batch, "its inputs must be of one batch size")
    for x in scanned:
        b.require_equal(x.dims[1], steps, "the inputs that it scans must be of one length")
    if lengths is not None:
        b.require_equal(lengths.dims[0], batch, "there must be a length for each sequence")
        lengths = _made(node, lengths)

    def body(at: Dim, _: Sequence[AnyValue]) -> tuple[Dim, list[AnyValue], list[Value]]:
        def of_sequence(x: Value) -> Value:
            return reshape(b, slice_axis(b, x, 0, at, 1), x.dims[1:])

        length = steps
        if lengths is not None:
            own = b.run_time(b.item(lengths, at), natural=False)
            length = symbolic.clamp(own, 0, steps)
            b.require_equal(own, length, "the length of a sequence is out of range")
        parts = [(of_sequence(x), 0, flag) for x, flag in zip(scanned, backwards, strict=True)]
        results = _scan(node, [of_sequence(x) for x in states], parts, length)
        rows = [
            pad(b, rows, [0] * rows.rank, [steps - length, *[0] * (rows.rank - 1)])
            for rows in results[len(states) :]
        ]
        return ONE, [], [*results[: len(states)], *rows]

    return run(node, [], batch, ONE, body)


def _scan(
    node: Node,
    states: Sequence[Value],
    scanned: Sequence[tuple[Value, int, int]],
    length: Dim,
) -> list[Value]:
    """States after the last step, and rows along a new first axis, in the order of steps."""
    graph = node.graph("body")
    made = [(_made(node, x), axis, backward) for x, axis, backward in scanned]

    def body(at: Dim, values: Sequence[AnyValue]) -> tuple[Dim, list[AnyValue], list[Value]]:
        parts = []
        for x, axis, backward in made:
            position = length - 1 - at if backward else at
            part = slice_axis(node.b, x, axis, position, 1)
            parts.append(reshape(node.b, part, [d for i, d in enumerate(x.dims) if i != axis]))
        returned = node.lowering.subgraph(graph, [*values, *parts], node)
        rows = [_tensor(node, row) for row in returned[len(states) :]]
        return ONE, returned[: len(states)], rows

    return [_tensor(node, value) for value in run(node, states, length, ONE, body)]


def _made(node: Node, x: Value) -> Value:
    """The value as a tensor made here, before the loop."""
    return Value(x.dtype, x.dims, ssa=node.b.tensor(x))


def _directed(node: Node, rows: Value, axis: int, backward: int) -> Value:
    """A collection with its steps along `axis`, and turned round."""
    at = node.counted(axis, rows.rank)
    if backward:
        length = rows.dims[0]
        begins = [length - 1, *[symbolic.ZERO] * (rows.rank - 1)]
        rows = slice_axes(node.b, rows, begins, rows.dims, [-1] + [1] * (rows.rank - 1))
    order = list(range(1, rows.rank))
    order.insert(at, 0)
    return transpose(node.b, rows, order)
