"""Bulk copies (PTX ISA, "cp.async.bulk" and "cp.async.bulk.tensor"); see bulk.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import bulk
from ..accesses import AddressSource
from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run
from ..errors import LaneFault
from ..lanes import Lanes, spread, take
from ..memory import GLOBAL_BASE
from ..operands import RegisterView, Source
from ..syntax import Integer, Symbol, TensorAddress
from ..tensor_map import MAP_ALIGNMENT, MAP_BYTES, BadTensorMap, TensorMap
from ..types import TYPES
from ..warpgroup import CHUNK
from .bulk_prefetch import bulk_prefetch
from .load_store import address_of

_U32, _S32, _U64 = TYPES["u32"], TYPES["s32"], TYPES["u64"]
# A function of a lane's position among those that execute, and of the lane.
Issue = Callable[[int, int], None]


class BulkEffect(Effect):
    """An effect on what bulk copies do."""

    asynchronous = True
    shared_size = CHUNK


def bulk_copy(i: Decoder) -> Operation:
    """Everything behind `cp.async.bulk`."""
    if i.flag("commit_group"):
        i.arity(0)
        return BulkEffect(lambda batch: batch.bulk_groups.commit)
    if i.flag("wait_group"):
        return _wait(i)
    is_prefetch = i.flag("prefetch")
    if i.flag("tensor"):
        return _tensor(i, is_prefetch)
    if is_prefetch:
        return bulk_prefetch(i)
    return _run_of_bytes(i)


def _wait(i: Decoder) -> Operation:
    i.flag("read")
    i.arity(1)
    operand = i.operands[0]
    if not isinstance(operand, Integer):
        raise i.error("a number of groups is expected")
    pending = operand.value
    return BulkEffect(lambda batch: lambda lanes: batch.bulk_groups.wait(lanes, pending))


def _take_hint(i: Decoder) -> None:
    if i.flag("L2::cache_hint"):
        i.operands = i.operands[:-1]


def _issued(line: int, bind: Callable[[Batch, Lanes | None], Issue]) -> Operation:
    """Lane by lane: few issue bulk copies, and each of them moves much."""

    def bind_batch(batch: Batch) -> Run:
        def run(lanes: Lanes | None) -> None:
            batch.line = line
            issue = bind(batch, lanes)
            indices = np.arange(batch.lanes) if lanes is None else lanes.indices
            for position, lane in enumerate(indices.tolist()):
                issue(position, lane)

        return run

    return BulkEffect(bind_batch)


def _run_of_bytes(i: Decoder) -> Operation:
    """`cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [to], [from], size, [at]`
    or `cp.async.bulk.global.shared::cta.bulk_group [to], [from], size`."""
    is_load = _direction(i)
    _take_hint(i)
    i.arity(4 if is_load else 3)
    to, origin, size = address_of(i, 0), address_of(i, 1), i.source(2, _U32)
    barrier = address_of(i, 3) if is_load else None

    def bind(batch: Batch, lanes: Lanes | None) -> Issue:
        targets, sources = to.bind(batch)(lanes), origin.bind(batch)(lanes)
        sizes = spread(take(size.array(batch), lanes), len(targets))
        barriers = barrier.bind(batch)(lanes) if barrier else None

        def issue(position: int, lane: int) -> None:
            ends = int(targets[position]), int(sources[position]), int(sizes[position])
            if barriers is None:
                bulk.store_bytes(batch, *ends, lane)
            else:
                bulk.load_bytes(batch, *ends, int(barriers[position]), lane)

        return issue

    return _issued(i.instruction.line, bind)


def _direction(i: Decoder) -> bool:
    """Whether it goes to shared memory; takes the spaces and how completion is told."""
    first = i.rest()[0] if i.rest() else ""
    i.need("shared::cluster", "shared::cta", "global")
    if first == "global":
        i.need("shared::cta")
        i.flag("tile")
        i.need("bulk_group")
        return False
    i.need("global")
    i.flag("tile")
    i.need("mbarrier::complete_tx::bytes")
    return True


def _tensor(i: Decoder, is_prefetch: bool) -> Operation:
    """`cp.async.bulk.tensor.2d.<to>.<from>... [to], [map, {c0, c1}], [mbar]`, and the way back."""
    rank = int(i.need("1d", "2d", "3d", "4d", "5d")[0])
    if is_prefetch:
        i.need("L2")
        i.need("global")
        i.flag("tile")
        _take_hint(i)
        i.arity(1)
        return Effect(lambda batch: lambda lanes: None)
    is_load = _direction(i)
    _take_hint(i)
    i.arity(3 if is_load else 2)
    tensor, coordinates = _tensor_operand(i, 1 if is_load else 0, rank)
    place = address_of(i, 0 if is_load else 1)
    barrier = address_of(i, 2) if is_load else None

    def bind(batch: Batch, lanes: Lanes | None) -> Issue:
        maps, places = tensor.bind(batch)(lanes), place.bind(batch)(lanes)
        count = len(places)
        points = [spread(take(one.array(batch), lanes), count) for one in coordinates]
        barriers = barrier.bind(batch)(lanes) if barrier else None

        def issue(position: int, lane: int) -> None:
            found = _map_at(batch, int(maps[position]), lane)
            point = [int(values[position]) for values in points]
            shared = int(places[position])
            if barriers is None:
                bulk.store_box(batch, found, point, shared, lane)
            else:
                bulk.load_box(batch, shared, found, point, int(barriers[position]), lane)

        return issue

    return _issued(i.instruction.line, bind)


def _tensor_operand(i: Decoder, index: int, rank: int) -> tuple[AddressSource, list[Source]]:
    operand = i.operands[index]
    if not isinstance(operand, TensorAddress):
        raise i.error("a tensor map and coordinates in brackets are expected")
    if len(operand.coordinates) != rank:
        raise i.error(f"{len(operand.coordinates)} coordinates of {rank}")
    coordinates = [i.read(element, _S32) for element in operand.coordinates]
    if isinstance(operand.base, Symbol):
        return AddressSource(i.address_of(operand.base, _U64), 0), coordinates
    slot = i.names.register(operand.base.name)
    if slot is None or slot.bits != 64:
        raise i.error(f"{operand.base.name} holds no generic address")
    i.reads.add(slot.number)
    return AddressSource(RegisterView(slot, np.dtype(np.uint64)), 0), coordinates


def _map_at(batch: Batch, address: int, lane: int) -> TensorMap:
    if address % MAP_ALIGNMENT or address < GLOBAL_BASE:
        raise LaneFault(
            f"a tensor map at {address:#x}, which is no multiple of {MAP_ALIGNMENT} in global or "
            "parameter memory",
            lane,
        )
    addresses = np.uint64(address) + np.arange(0, MAP_BYTES, CHUNK, dtype=np.uint64)
    rows = batch.global_memory.load(
        addresses, CHUNK, Lanes(np.full(len(addresses), lane), batch.lanes)
    )
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    try:
        return TensorMap.decode(data)
    except BadTensorMap as error:
        raise LaneFault(f"at {address:#x}: {error}", lane) from None
