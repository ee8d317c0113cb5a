"""Clusters of one block: their barrier and their addresses."""

from __future__ import annotations

import numpy as np

from ..batch import Batch
from ..control import CLUSTER, Barrier
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import Lanes, lane_number, put, take
from ..operands import Constant
from ..types import TYPES

_U32 = TYPES["u32"]


def cluster_barrier(i: Decoder) -> Operation:
    """A cluster is one block here: its barrier is one more of the block, at the wait."""
    kind = i.need("arrive", "wait")
    aligned = i.flag("aligned")
    i.ignore("acquire", "release", "relaxed")
    i.arity(0)
    if kind == "wait":
        return Barrier(Constant(np.uint32(CLUSTER)), None, aligned=aligned)

    def bind(batch: Batch) -> Run:
        def run(lanes: Lanes | None) -> None:
            indices = np.arange(batch.lanes) if lanes is None else lanes.indices
            twice = indices[batch.cluster_arrived[indices]]
            if len(twice):
                raise LaneFault("barrier.cluster.arrive again before the wait", int(twice[0]))
            batch.cluster_arrived[indices] = True

        return run

    return Effect(bind)


@instruction("mapa")
def map_address(i: Decoder) -> Operation:
    """The address in the shared memory of a block of the cluster, which has one block."""
    i.flag("shared::cluster")
    type = i.type()
    i.arity(3)
    result, source, rank = i.result(0, type), i.source(1, type), i.source(2, _U32)

    def bind(batch: Batch) -> Run:
        array, ranks = source.array(batch), rank.array(batch)

        def run(lanes: Lanes | None) -> None:
            beyond = np.flatnonzero(np.atleast_1d(take(ranks, lanes)) != 0)
            if len(beyond):
                raise LaneFault(
                    "mapa of a block that the cluster of one block does not have",
                    lane_number(lanes, int(beyond[0])),
                )
            if result is not None:
                put(result.array(batch), lanes, take(array, lanes))

        return run

    return Effect(bind)
