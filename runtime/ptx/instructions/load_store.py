"""Loads and stores (PTX ISA, "Data Movement and Conversion Instructions").

Scopes and orderings (.relaxed.gpu, .acquire, .volatile) and hints for caches change no value: the
machine is sequentially consistent. But what blocks hand to each other must be ordered by them
(handovers.py), and lanes that acquire let others go on first, as whoever waits for others does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..accesses import Access, AddressSource
from ..batch import Batch
from ..control import GivingWay
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import Lanes, put, spread, take
from ..memory import GLOBAL_BASE, LOCAL_BASE, SHARED_BASE, Memory
from ..operands import RegisterView, Source
from ..syntax import Address, Symbol
from ..types import TYPES, ScalarType

ORDERINGS = ("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio", "sc")
SCOPES = ("cta", "cluster", "gpu", "sys")
_STRONG = {"relaxed", "acquire", "release", "acq_rel", "volatile", "mmio"}
CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified")
T = TypeVar("T")

_SPACES = {
    "global": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "shared",
    "local": "local",
    "const": "global",
    "param": "param",
    "param::entry": "param",
    "param::func": "param",
}


def space_of(i: Decoder) -> str:
    """The space among the modifiers, "generic" where there is none."""
    found = i.choose(*_SPACES)
    return _SPACES[found] if found else "generic"


def take_hints(i: Decoder) -> None:
    """Takes what says how to order and cache an access, and the operand of a cache policy."""
    i.ignore(*ORDERINGS, *SCOPES, *CACHE)
    for modifier in list(i.rest()):
        if modifier == "L2::cache_hint":
            i.operands = i.operands[:-1]
        if modifier.startswith(("L1::", "L2::")):
            i.rest().remove(modifier)


@dataclass(frozen=True)
class Ordering:
    """What an access orders between blocks. `strong`: it may meet others' in global memory."""

    strong: bool = False
    acquires: bool = False
    releases: bool = False

    @staticmethod
    def of(i: Decoder, space: str) -> Ordering:
        """By modifiers that are not taken yet; whether it is atomic, the caller knows."""
        words = {*i.rest()}
        wide = bool(words & {"gpu", "sys", "volatile", "mmio"}) and space in ("global", "generic")
        return Ordering(
            wide and bool(words & _STRONG),
            wide and bool(words & {"acquire", "acq_rel"}),
            wide and bool(words & {"release", "acq_rel"}),
        )

    def around(
        self, batch: Batch, access: Callable[[], T], addresses: np.ndarray, lanes: Lanes | None
    ) -> T:
        """The access, with what it orders."""
        handovers = batch.global_memory.handovers
        if handovers is None or not self.strong:
            return access()
        with handovers.ordering():
            result = access()
        if int(addresses.min()) < GLOBAL_BASE:  # a generic address of shared memory
            return result
        words = batch.global_memory.words_of(addresses)
        if self.acquires:
            handovers.acquire(words, lanes)
        if self.releases:
            handovers.release(words, lanes)
        return result


def address_of(i: Decoder, index: int) -> AddressSource:
    """An address operand; constants and variables have no register."""
    operand = i.operands[index]
    if not isinstance(operand, Address):
        raise i.error("an address in brackets is expected")
    if operand.base is None:
        return AddressSource(None, operand.offset)
    if isinstance(operand.base, Symbol):
        return AddressSource(i.address_of(operand.base, TYPES["u64"]), operand.offset)
    slot = i.names.register(operand.base.name)
    if slot is None or slot.is_predicate or slot.bits < 32:
        raise i.error(f"{operand.base.name} holds no address")
    i.reads.add(slot.number)
    return AddressSource(RegisterView(slot, np.dtype(f"u{slot.bits // 8}")), operand.offset)


def _space_of_symbol(i: Decoder, index: int, space: str) -> tuple[str, int | None]:
    """The space, and the offset of a kernel's parameter that is named directly."""
    operand = i.operands[index]
    if isinstance(operand, Address) and isinstance(operand.base, Symbol):
        place = i.names.place(operand.base.name)
        if place is None:
            raise i.error(f"{operand.base.name} is not declared")
        if space not in ("generic", place.space) and not (
            space == "param" and place.space == "local"
        ):
            raise i.error(f"{operand.base.name} lies in .{place.space}")
        if place.space == "param":
            return "param", place.offset + operand.offset
        return place.space, None
    return ("global" if space == "param" else space), None


def memories(
    batch: Batch, space: str, addresses: np.ndarray, lanes: Lanes | None
) -> Iterator[tuple[Memory, np.ndarray, Lanes | None, np.ndarray | None]]:
    """The memories that addresses lie in, each with its addresses, lanes and their positions."""
    if space != "generic":
        yield _memory(batch, space), addresses, lanes, None
        return
    if addresses.dtype != np.uint64:
        raise LaneFault("a generic address of 32 bits")
    if int(addresses.min()) >= GLOBAL_BASE:
        yield batch.global_memory, addresses, lanes, None
        return
    indices = np.arange(batch.lanes) if lanes is None else lanes.indices
    windows = (
        ("global", GLOBAL_BASE, 0),
        ("shared", SHARED_BASE, SHARED_BASE),
        ("local", LOCAL_BASE, LOCAL_BASE),
        ("global", 0, 0),
    )
    left = np.ones(len(addresses), np.bool_)
    for name, base, subtract in windows:
        chosen = np.flatnonzero(left & (addresses >= np.uint64(base)))
        if len(chosen):
            left[chosen] = False
            whole = len(chosen) == batch.lanes
            some = None if whole else Lanes(indices[chosen], batch.lanes)
            yield _memory(batch, name), addresses[chosen] - np.uint64(subtract), some, chosen


def _memory(batch: Batch, space: str) -> Memory:
    if space == "shared":
        return batch.shared
    return batch.local if space == "local" else batch.global_memory


def load(
    batch: Batch,
    space: str,
    addresses: np.ndarray,
    size: int,
    lanes: Lanes | None,
    line: int,
    named: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of `size` bytes, one per lane; `named`: the lanes, where not all that execute access."""
    batch.line = line
    note_access(batch, space, addresses, size, False, named)
    rows: np.ndarray | None = None
    for memory, some, where, chosen in memories(batch, space, addresses, lanes):
        part = memory.load(some, size, where)
        if chosen is None:
            return part
        if rows is None:
            rows = np.empty((len(addresses), *part.shape[1:]), part.dtype)
        rows[chosen] = part
    assert rows is not None
    return rows


def store(
    batch: Batch,
    space: str,
    addresses: np.ndarray,
    size: int,
    rows: np.ndarray,
    lanes: Lanes | None,
    line: int,
    named: np.ndarray | None = None,
) -> None:
    """Writes rows of `size` bytes, one per lane; see `load`."""
    batch.line = line
    note_access(batch, space, addresses, size, True, named)
    for memory, some, where, chosen in memories(batch, space, addresses, lanes):
        memory.store(some, size, rows if chosen is None else rows[chosen], where)


def note_access(
    batch: Batch,
    space: str,
    addresses: np.ndarray,
    size: int,
    is_write: bool,
    named: np.ndarray | None = None,
) -> None:
    """Tells counters, where there are any."""
    if batch.accesses is not None:
        # A copy: the register that holds the addresses may be the one that is written next.
        batch.accesses.append(Access(space, addresses.copy(), size, is_write, named))


def accessing(operation: Operation, space: str, size: int) -> Operation:
    """Notes how many bytes of shared memory an operation may touch at once."""
    if space in ("shared", "generic"):
        operation.shared_size = size
    return operation


# ---- ld


@instruction("ld", "ldu")
def ld(i: Decoder) -> Operation:
    space = space_of(i)
    count = int((i.choose("v2", "v4", "v8") or "v1")[1:])
    ordering = Ordering.of(i, space)
    take_hints(i)
    type = i.type()
    i.arity(2)
    elements = i.elements(0)
    if len(elements) != count:
        raise i.error(f"{len(elements)} registers for {count} values")
    results = [i.write(element, type, relaxed=True) for element in elements]
    space, parameter = _space_of_symbol(i, 1, space)
    if parameter is not None:
        return _load_parameter(results, type, parameter)
    return _load(i, results, type, space, ordering)


def _load_parameter(results: list[RegisterView | None], type: ScalarType, offset: int) -> Operation:
    """The same value in all lanes."""

    def bind(batch: Batch) -> Run:
        data = batch.launch.parameters[offset : offset + type.bytes * len(results)]
        values = data.copy().view(type.dtype)
        outs = [result.array(batch) if result else None for result in results]

        def run(lanes: Lanes | None) -> None:
            for out, value in zip(outs, values, strict=True):
                if out is not None:
                    put(out, lanes, value)

        return run

    return Effect(bind)


def _load(
    i: Decoder,
    results: list[RegisterView | None],
    type: ScalarType,
    space: str,
    ordering: Ordering,
) -> Operation:
    size, line = type.bytes * len(results), i.instruction.line
    address = address_of(i, 1)
    dtype = type.dtype

    def bind(batch: Batch) -> Run:
        addresses = address.bind(batch)
        outs = [result.array(batch) if result else None for result in results]

        def run(lanes: Lanes | None) -> None:
            places = addresses(lanes)
            rows = ordering.around(
                batch, lambda: load(batch, space, places, size, lanes, line), places, lanes
            )
            values = rows.view(dtype).reshape(-1, len(outs))
            for k, out in enumerate(outs):
                if out is not None:
                    put(out, lanes, values[:, k])

        return run

    operation = GivingWay(bind) if ordering.acquires else Effect(bind)
    operation.orders_blocks = ordering.acquires or ordering.releases
    return accessing(operation, space, size)


# ---- st


@instruction("st")
def st(i: Decoder) -> Operation:
    space = space_of(i)
    count = int((i.choose("v2", "v4", "v8") or "v1")[1:])
    ordering = Ordering.of(i, space)
    take_hints(i)
    type = i.type()
    i.arity(2)
    elements = i.elements(1)
    if len(elements) != count:
        raise i.error(f"{len(elements)} registers for {count} values")
    sources = [i.read(element, type, relaxed=True) for element in elements]
    space, parameter = _space_of_symbol(i, 0, space)
    if parameter is not None:
        raise i.error("a kernel's parameters cannot be written")
    return _store(i, sources, type, space, ordering)


def _store(
    i: Decoder, sources: list[Source], type: ScalarType, space: str, ordering: Ordering
) -> Operation:
    count = len(sources)
    size, line = type.bytes * count, i.instruction.line
    address = address_of(i, 0)

    def bind(batch: Batch) -> Run:
        addresses = address.bind(batch)
        arrays = [source.array(batch) for source in sources]

        def run(lanes: Lanes | None) -> None:
            places = addresses(lanes)
            if count == 1:
                rows = np.ascontiguousarray(spread(take(arrays[0], lanes), len(places)))
            else:
                rows = np.empty((len(places), count), type.dtype)
                for k, array in enumerate(arrays):
                    rows[:, k] = take(array, lanes)
            values = as_rows(rows, size)
            ordering.around(
                batch, lambda: store(batch, space, places, size, values, lanes, line), places, lanes
            )

        return run

    operation = Effect(bind)
    operation.orders_blocks = ordering.releases
    return accessing(operation, space, size)


def as_rows(values: np.ndarray, size: int) -> np.ndarray:
    """Contiguous values as the rows that memory takes: one number, or 8-byte words."""
    if size <= 8:
        return values.reshape(-1).view(f"u{size}")
    return values.reshape(-1).view(np.uint64).reshape(-1, size // 8)


@instruction("prefetch", "prefetchu", "discard", "applypriority", "createpolicy")
def hint(i: Decoder) -> Operation:
    """Says something to caches; addresses of hints are not checked."""
    if i.opcode in ("discard", "createpolicy", "applypriority"):
        raise i.error(f"{i.opcode} is not supported")
    i.rest().clear()
    return Effect(lambda batch: lambda lanes: None)
