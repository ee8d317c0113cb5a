"""Instructions in which the lanes of a warp work together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import WARP, Lanes, lane_number, put, spread, take
from ..operands import Source
from ..syntax import Pair, Sink
from ..types import TYPES

_U32, _PREDICATE = TYPES["u32"], TYPES["pred"]
_EVERYBODY = 0xFFFF_FFFF


class WarpEffect(Effect):
    """An effect for whole warps: the lanes of the member mask execute it together."""

    def __init__(self, bind: Callable[[Batch], Run], members: Source) -> None:
        super().__init__(bind)
        self.rendezvous = members


class Team:
    """The lanes that execute, warp by warp: `warp` and `lane` of each of them."""

    def __init__(self, batch: Batch, lanes: Lanes | None) -> None:
        self.batch = batch
        self.lanes = lanes
        self.indices = np.arange(batch.lanes) if lanes is None else lanes.indices
        self.warp = self.indices // WARP
        self.lane = self.indices % WARP
        self.count = len(self.indices)

    def values(self, array: np.ndarray) -> np.ndarray:
        return spread(take(array, self.lanes), self.count)

    def by_warp(self, values: np.ndarray, default: int = 0) -> np.ndarray:
        """[warps, 32], with `default` for lanes that do not execute."""
        whole = np.full(self.batch.lanes, default, values.dtype)
        whole[self.indices] = values
        return whole.reshape(-1, WARP)

    def check_members(self, members: np.ndarray) -> np.ndarray:
        """The member mask of each lane, without threads that ended; the lane must be in it."""
        mask = self.values(members)
        outside = np.flatnonzero(mask >> self.lane.astype(np.uint32) & np.uint32(1) == 0)
        if len(outside):
            raise LaneFault(
                f"lane {self.lane[outside[0]]} is not in its member mask {mask[outside[0]]:#010x}",
                lane_number(self.lanes, int(outside[0])),
            )
        return self.ballot(np.ones(self.count, np.bool_), mask)

    def ballot(self, holds: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """For each lane the members of its mask for which something holds, as bits."""
        bits = np.packbits(self.by_warp(holds), axis=1, bitorder="little").view(np.uint32)[:, 0]
        return bits[self.warp] & mask


@instruction("shfl")
def shuffle(i: Decoder) -> Operation:
    """`shfl.sync.mode.b32 d|p, a, b, c, members`: c has the clamp and the mask of segments."""
    i.need("sync")
    mode = i.need("up", "down", "bfly", "idx")
    i.type()
    i.arity(5)
    target = i.operands[0]
    result, valid = (target.first, target.second) if isinstance(target, Pair) else (target, Sink())
    out = i.write(result, _U32)
    predicate = i.write(valid, _PREDICATE)
    a, b, c, members = (i.source(k, _U32) for k in (1, 2, 3, 4))

    def bind(batch: Batch) -> Run:
        value, offset, clamp, mask = (source.array(batch) for source in (a, b, c, members))

        def run(lanes: Lanes | None) -> None:
            team = Team(batch, lanes)
            allowed = team.check_members(mask)
            partner, inside = _partner(mode, team, team.values(offset), team.values(clamp))
            _check_partner(team, partner, allowed)
            whole = team.by_warp(team.values(value))
            if out is not None:
                put(out.array(batch), lanes, whole[team.warp, partner])
            if predicate is not None:
                put(predicate.array(batch), lanes, inside)

        return run

    return WarpEffect(bind, members)


def _partner(
    mode: str, team: Team, offset: np.ndarray, clamp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lane to read from (its own, where that is out of range), and whether it was in range."""
    lane = team.lane
    distance = (offset & np.uint32(31)).astype(np.int64)
    segment = (clamp >> np.uint32(8) & np.uint32(31)).astype(np.int64)
    limit = (clamp & np.uint32(31)).astype(np.int64)
    low = lane & segment
    high = low | (limit & ~segment)
    if mode == "up":
        partner = lane - distance
        inside = partner >= high
    elif mode == "down":
        partner = lane + distance
        inside = partner <= high
    elif mode == "bfly":
        partner = lane ^ distance
        inside = partner <= high
    else:
        partner = low | (distance & ~segment)
        inside = partner <= high
    return np.where(inside, partner, lane), inside


def _check_partner(team: Team, partner: np.ndarray, allowed: np.ndarray) -> None:
    """Reading from a lane that does not take part gives anything at all."""
    outside = np.flatnonzero(allowed >> partner.astype(np.uint32) & np.uint32(1) == 0)
    if len(outside):
        raise LaneFault(
            f"shfl.sync reads from lane {partner[outside[0]]}, which does not take part",
            lane_number(team.lanes, int(outside[0])),
        )


@instruction("vote")
def vote(i: Decoder) -> Operation:
    """`vote.sync.all|any|uni.pred`, `vote.sync.ballot.b32`."""
    i.need("sync")
    mode = i.need("all", "any", "uni", "ballot")
    result = i.result(0, i.type())
    i.arity(3)
    predicate = i.predicate_source(i.operands[1])
    members = i.source(2, _U32)

    def bind(batch: Batch) -> Run:
        holds, mask = predicate(batch), members.array(batch)

        def run(lanes: Lanes | None) -> None:
            team = Team(batch, lanes)
            allowed = team.check_members(mask)
            said = team.ballot(spread(np.asarray(holds(lanes)), team.count), allowed)
            values = {
                "all": said == allowed,
                "any": said != 0,
                "uni": (said == 0) | (said == allowed),
                "ballot": said,
            }[mode]
            if result is not None:
                put(result.array(batch), lanes, values)

        return run

    return WarpEffect(bind, members)


@instruction("match")
def match(i: Decoder) -> Operation:
    """`.any`: the lanes with the same value; `.all`: all lanes, if all have the same."""
    mode = i.need("any", "all")
    i.need("sync")
    type = i.type()
    i.arity(3)
    target = i.operands[0]
    pair = target if isinstance(target, Pair) else Pair(target, Sink())
    out, agreed = i.write(pair.first, _U32), i.write(pair.second, _PREDICATE)
    source, members = i.source(1, TYPES[f"u{type.bits}"]), i.source(2, _U32)

    def bind(batch: Batch) -> Run:
        value, mask = source.array(batch), members.array(batch)

        def run(lanes: Lanes | None) -> None:
            team = Team(batch, lanes)
            allowed = team.check_members(mask)
            mine = team.values(value)
            same = team.by_warp(mine)[team.warp] == mine[:, None]
            bits = np.packbits(same, axis=1, bitorder="little").view(np.uint32)[:, 0] & allowed
            everybody = bits == allowed
            if mode == "all":
                bits = np.where(everybody, bits, np.uint32(0))
            if out is not None:
                put(out.array(batch), lanes, bits)
            if agreed is not None:
                put(agreed.array(batch), lanes, everybody)

        return run

    return WarpEffect(bind, members)


@instruction("activemask")
def active_mask(i: Decoder) -> Operation:
    """The lanes of the warp that execute this together: what holds of this machine's order."""
    result = i.result(0, i.type())
    i.arity(1)

    def bind(batch: Batch) -> Run:
        def run(lanes: Lanes | None) -> None:
            team = Team(batch, lanes)
            present = team.ballot(np.ones(team.count, np.bool_), np.asarray(np.uint32(_EVERYBODY)))
            if result is not None:
                put(result.array(batch), lanes, present)

        return run

    return Effect(bind)


_REDUCTIONS: dict[str, Callable] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@instruction("redux")
def reduce_warp(i: Decoder) -> Operation:
    """A reduction over the members of the mask, for each of them."""
    i.need("sync")
    function = _REDUCTIONS[i.need(*_REDUCTIONS)]
    type = i.type()
    if not type.is_integer:
        raise i.error("redux.sync of floats is not supported")
    i.arity(3)
    result, source, members = i.result(0, type), i.source(1, type), i.source(2, _U32)

    def bind(batch: Batch) -> Run:
        value, mask = source.array(batch), members.array(batch)

        def run(lanes: Lanes | None) -> None:
            team = Team(batch, lanes)
            allowed = team.check_members(mask)
            rows = team.by_warp(team.values(value))[team.warp]
            total = _reduced(function, rows, allowed)
            if result is not None:
                put(result.array(batch), lanes, total)

        return run

    return WarpEffect(bind, members)


def _reduced(function: Callable, rows: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Row by row over the lanes of a mask; it starts with the first of them."""
    first = (allowed & (~allowed + np.uint32(1))).astype(np.float64)
    total = rows[np.arange(len(rows)), np.log2(first).astype(np.int64)]
    for lane in range(WARP):
        bit = np.uint32(1 << lane)
        counts = ((allowed & bit) != 0) & ((allowed & (bit - np.uint32(1))) != 0)
        total = np.where(counts, function(total, rows[:, lane]), total)
    return total


@instruction("elect")
def elect(i: Decoder) -> Operation:
    """One lane of the members, the lowest, is the leader."""
    i.need("sync")
    i.arity(2)
    target = i.operands[0]
    if not isinstance(target, Pair):
        raise i.error("elect.sync has two results")
    leader, chosen = i.write(target.first, _U32), i.write(target.second, _PREDICATE)
    members = i.source(1, _U32)

    def bind(batch: Batch) -> Run:
        mask = members.array(batch)

        def run(lanes: Lanes | None) -> None:
            team = Team(batch, lanes)
            allowed = team.check_members(mask)
            lowest = np.log2((allowed & (~allowed + np.uint32(1))).astype(np.float64))
            if leader is not None:
                put(leader.array(batch), lanes, lowest.astype(np.uint32))
            if chosen is not None:
                put(chosen.array(batch), lanes, team.lane == lowest)

        return run

    return WarpEffect(bind, members)


def synchronize_warp(i: Decoder) -> Operation:
    """`bar.warp.sync`: orders the accesses of the warp's lanes to memory."""
    i.need("sync")
    i.arity(1)
    members = i.source(0, _U32)

    def bind(batch: Batch) -> Run:
        mask = members.array(batch)

        def run(lanes: Lanes | None) -> None:
            Team(batch, lanes).check_members(mask)
            batch.shared.warps_synchronized(lanes)

        return run

    return WarpEffect(bind, members)
