"""mbarriers (PTX ISA, "mbarrier"); what they do stands in mbarriers.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..accesses import AddressSource
from ..batch import Batch
from ..control import MbarrierTest
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import Lanes, lane_number, put, spread, take
from ..mbarriers import BYTES
from ..memory import SHARED_BASE, WINDOW_BYTES
from ..operands import Constant, RegisterView, Source
from ..syntax import Sink
from ..types import TYPES
from .load_store import address_of

_U32, _S32, _U64, _PREDICATE = TYPES["u32"], TYPES["s32"], TYPES["u64"], TYPES["pred"]
_SHARED = ("shared", "shared::cta", "shared::cluster")
Addresses = Callable[[Lanes | None], np.ndarray]


class MbarrierEffect(Effect):
    """An effect on mbarriers."""

    asynchronous = True
    shared_size = BYTES


@instruction("mbarrier")
def mbarrier(i: Decoder) -> Operation:
    kind = i.need(*_KINDS)
    return _KINDS[kind](i)


def shared_addresses(source: AddressSource, is_generic: bool, batch: Batch) -> Addresses:
    """Addresses in shared memory: offsets, or generic addresses within its window."""
    addresses = source.bind(batch)
    if not is_generic:
        return addresses

    def offsets(lanes: Lanes | None) -> np.ndarray:
        found = addresses(lanes).astype(np.uint64) - np.uint64(SHARED_BASE)
        outside = np.flatnonzero(found >= np.uint64(WINDOW_BYTES))
        if len(outside):
            raise LaneFault(
                "a generic address that lies outside of shared memory",
                lane_number(lanes, int(outside[0])),
            )
        return found

    return offsets


def _place(i: Decoder, index: int) -> Callable[[Batch], Addresses]:
    """Takes the space, the type and the operand that names an object."""
    is_generic = not i.flag(*_SHARED)
    i.need("b64")
    address = address_of(i, index)
    return lambda batch: shared_addresses(address, is_generic, batch)


def _ordering(i: Decoder, weak: str = "relaxed") -> bool:
    """Whether it releases or acquires."""
    is_weak = i.flag(weak)
    i.ignore("release", "acquire", "cta", "cluster")
    return not is_weak


def _init(i: Decoder) -> Operation:
    place = _place(i, 0)
    i.arity(2)
    count, line = i.source(1, _U32), i.instruction.line

    def bind(batch: Batch) -> Run:
        addresses, counts = place(batch), count.array(batch)

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            batch.mbarriers.init(addresses(lanes), take(counts, lanes), lanes)

        return run

    return MbarrierEffect(bind)


def _inval(i: Decoder) -> Operation:
    place, line = _place(i, 0), i.instruction.line
    i.arity(1)

    def bind(batch: Batch) -> Run:
        addresses = place(batch)

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            batch.mbarriers.inval(addresses(lanes), lanes)

        return run

    return MbarrierEffect(bind)


def _expect(sign: int) -> Callable[[Decoder], Operation]:
    def decode(i: Decoder) -> Operation:
        _ordering(i)
        place = _place(i, 0)
        i.arity(2)
        count, line = i.source(1, _U32), i.instruction.line

        def bind(batch: Batch) -> Run:
            addresses, counts = place(batch), count.array(batch)

            def run(lanes: Lanes | None) -> None:
                batch.line = line
                nbytes = sign * take(counts, lanes).astype(np.int64)
                batch.mbarriers.expect(addresses(lanes), np.asarray(nbytes), lanes)

            return run

        return MbarrierEffect(bind)

    return decode


def _arrive(drops: bool) -> Callable[[Decoder], Operation]:
    def decode(i: Decoder) -> Operation:
        expects = i.flag("expect_tx")
        completes = not i.flag("noComplete")
        releases = _ordering(i)
        remote = "shared::cluster" in i.rest()
        place = _place(i, 1)
        count = i.arity(2, 3)
        if (expects or not completes) and count != 3:
            raise i.error("a count is missing")
        if remote and not isinstance(i.operands[0], Sink):
            raise i.error("an arrival at .shared::cluster returns no state")
        result = i.result(0, _U64)
        one = Constant(np.uint32(1))
        number = i.source(2, _U32) if count == 3 else one
        return _arrival(i, place, number, expects, completes, drops, releases, result)

    return decode


def _arrival(
    i: Decoder,
    place: Callable[[Batch], Addresses],
    number: Source,
    expects: bool,
    completes: bool,
    drops: bool,
    releases: bool,
    result: RegisterView | None,
) -> Operation:
    line = i.instruction.line

    def bind(batch: Batch) -> Run:
        addresses, numbers = place(batch), number.array(batch)
        out = result.array(batch) if result else None

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            values = take(numbers, lanes)
            states = batch.mbarriers.arrive(
                addresses(lanes),
                np.asarray(np.int64(1)) if expects else values,
                lanes,
                transactions=values if expects else None,
                completes=completes,
                drops=drops,
                releases=releases,
            )
            if out is not None:
                put(out, lanes, states)

        return run

    return MbarrierEffect(bind)


def _test(i: Decoder) -> Operation:
    is_parity = i.flag("parity")
    acquires = _ordering(i)
    place = _place(i, 1)
    i.arity(3, 4)  # the fourth: how long try_wait may take
    result = i.result(0, _PREDICATE)
    if result is None:
        raise i.error("a predicate is expected")
    value = i.source(2, _U32 if is_parity else _U64)
    if len(i.operands) == 4:
        i.source(3, _U32)
    return MbarrierTest(place, value, is_parity, acquires, result)


def _pending_count(i: Decoder) -> Operation:
    i.need("b64")
    i.arity(2)
    result, state = i.result(0, _U32), i.source(1, _U64)

    def bind(batch: Batch) -> Run:
        states = state.array(batch)

        def run(lanes: Lanes | None) -> None:
            if result is not None:
                pending = take(states, lanes) & np.uint64(0xFFFF_FFFF)
                put(result.array(batch), lanes, pending.astype(np.uint32))

        return run

    return MbarrierEffect(bind)


_KINDS: dict[str, Callable[[Decoder], Operation]] = {
    "init": _init,
    "inval": _inval,
    "expect_tx": _expect(1),
    "complete_tx": _expect(-1),
    "arrive": _arrive(drops=False),
    "arrive_drop": _arrive(drops=True),
    "test_wait": _test,
    "try_wait": _test,
    "pending_count": _pending_count,
}


def arrive_after_copies(i: Decoder) -> Operation:
    """`cp.async.mbarrier.arrive{.noinc}`: an arrival once this thread's cp.async are complete.

    Without .noinc the object's pending count rises before it falls.
    """
    i.need("arrive")
    raises = not i.flag("noinc")
    place, line = _place(i, 0), i.instruction.line
    i.arity(1)

    def bind(batch: Batch) -> Run:
        addresses = place(batch)

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            batch.shared.commit_copies(lanes)
            batch.shared.wait_for_copies(lanes, 0)
            places = addresses(lanes)
            one = spread(np.asarray(np.int64(1)), len(places))
            if raises:
                batch.mbarriers.raise_pending(places, lanes)
            batch.mbarriers.arrive(places, one, lanes)

        return run

    return MbarrierEffect(bind)
