"""`cp.async.bulk.prefetch.L2.global [from], size`: changes no value, but wants what it names."""

from __future__ import annotations

from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run
from ..errors import LaneFault, PtxFault
from ..lanes import Lanes, lane_number, spread, take
from ..types import TYPES
from .load_store import address_of, take_hints

UNIT = 16  # bytes, of addresses and sizes


def bulk_prefetch(i: Decoder) -> Operation:
    """What stands behind `prefetch`. Faults where a piece is not whole units or does not lie in one
    allocation."""
    i.need("L2")
    i.need("global")
    take_hints(i)
    i.arity(2)
    origin, line = address_of(i, 0), i.instruction.line
    size = i.read(i.operands[1], TYPES["u32"])

    def bind(batch: Batch) -> Run:
        sources, sizes = origin.bind(batch), size.array(batch)

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            addresses = sources(lanes)
            counts = spread(take(sizes, lanes), len(addresses))
            for k, (address, count) in enumerate(zip(addresses, counts, strict=True)):
                _check(batch, int(address), int(count), lane_number(lanes, k))

        return run

    return Effect(bind)


def _check(batch: Batch, address: int, count: int, lane: int) -> None:
    if address % UNIT or count % UNIT:
        raise LaneFault(f"{count} bytes at {address:#x} are no whole units of {UNIT}", lane)
    try:
        batch.global_memory.read(address, count)
    except PtxFault as fault:
        raise LaneFault(f"a prefetch of {count} bytes: {fault}", lane) from fault
