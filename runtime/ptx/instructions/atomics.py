"""Atomic operations on global and shared memory (PTX ISA, "atom", "red").

Lanes of one instruction that meet at an address act one after the other, in the order of their
numbers; on hardware the order is any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..arithmetic import canonical, odd_sum, pair, pair_halves
from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..lanes import Lanes, put, spread, take
from ..memory import Memory
from ..types import TYPES, ScalarType
from . import halves
from .load_store import (
    Ordering,
    accessing,
    address_of,
    memories,
    note_access,
    space_of,
    take_hints,
)
from .move import choose

Update = Callable[..., np.ndarray]
_UPDATES: dict[str, Update] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, b: b,
    "inc": lambda old, b: np.where(old >= b, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - old.dtype.type(1)),
    "cas": lambda old, b, c: choose(old == b, c, old),
}


@instruction("atom", "red")
def atomic(i: Decoder) -> Operation:
    space = space_of(i)
    name = i.need(*_UPDATES)
    noftz = i.flag("noftz")
    ordering = replace(Ordering.of(i, space), strong=space != "shared")
    take_hints(i)
    type = i.type()
    update, read_as = _update_of(i, name, type, noftz)
    returns = i.opcode == "atom"
    i.arity(returns + (3 if name == "cas" else 2))
    result = i.result(0, read_as) if returns else None
    sources = [i.source(k, read_as) for k in range(1 + returns, len(i.operands))]
    address, line, size = address_of(i, int(returns)), i.instruction.line, type.bytes
    dtype = read_as.dtype

    def bind(batch: Batch) -> Run:
        addresses = address.bind(batch)
        arrays = [source.array(batch) for source in sources]

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            places = addresses(lanes)
            values = [spread(take(array, lanes), len(places)) for array in arrays]
            note_access(batch, space, places, size, True)

            def access() -> None:
                for memory, some, where, chosen in memories(batch, space, places, lanes):
                    units = memory.claim(some, size, where)
                    mine = values if chosen is None else [value[chosen] for value in values]
                    old = _in_turn(_cells(memory, size, dtype), units, update, mine)
                    if result is not None:
                        put(result.array(batch), where, old)

            ordering.around(batch, access, places, lanes)

        return run

    operation = Effect(bind)
    operation.orders_blocks = ordering.acquires or ordering.releases
    return accessing(operation, space, size)


def _cells(memory: Memory, size: int, dtype: np.dtype) -> np.ndarray:
    return memory.rows[size].view(dtype)


def _update_of(i: Decoder, name: str, type: ScalarType, noftz: bool) -> tuple[Update, ScalarType]:
    """The new value from the old one and the operands, and the type in which all are read."""
    bits = TYPES[f"u{type.bits}"]
    if not type.is_float:
        if noftz:
            raise i.error(".noftz is for floats of 16 bits")
        return _UPDATES[name], type
    if name != "add":
        raise i.error(f"no atomic {name} of .{type.name}")
    if type.bits == 32 and type.lanes == 1:
        return lambda old, b: canonical(old + b), type
    if type.bits == 64:
        return np.add, type
    element = TYPES["bf16" if type.kind == "bf" else "f16"]

    def one(old: np.ndarray, b: np.ndarray) -> np.ndarray:
        exact = odd_sum(halves.decode(old, element), halves.decode(b, element))
        return halves.encode(exact, element)

    def two(old: np.ndarray, b: np.ndarray) -> np.ndarray:
        (low, high), (more_low, more_high) = pair_halves(old), pair_halves(b)
        return pair(one(low, more_low), one(high, more_high))

    return two if type.lanes == 2 else one, bits


def _in_turn(
    cells: np.ndarray, units: np.ndarray, update: Update, values: list[np.ndarray]
) -> np.ndarray:
    """Applies `update` for one lane after the other where they share a cell; the old values."""
    order = np.argsort(units, kind="stable")
    ordered = units[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    counts = np.diff(np.append(starts, len(ordered)))
    if update is np.add and cells.dtype.kind in "iu":
        return _sums_in_turn(cells, units, order, starts, counts, values[0])
    rank = np.empty(len(units), np.int64)
    rank[order] = np.arange(len(units)) - np.repeat(starts, counts)
    old = np.empty(len(units), cells.dtype)
    for turn in range(int(counts.max())):
        chosen = np.flatnonzero(rank == turn) if len(starts) < len(units) else slice(None)
        here = units[chosen]
        old[chosen] = cells[here]
        cells[here] = update(old[chosen], *(value[chosen] for value in values))
    return old


def _sums_in_turn(
    cells: np.ndarray,
    units: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """The same for sums of integers: what the lanes before add is a running sum."""
    dtype = cells.dtype
    sorted_values = values[order]
    running = np.cumsum(sorted_values, dtype=dtype) - sorted_values
    before = running - np.repeat(running[starts], counts)
    old = np.empty(len(units), dtype)
    old[order] = before + cells[units[order]]
    np.add.at(cells, units, values)
    return old
