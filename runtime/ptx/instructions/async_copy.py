"""Asynchronous copies from global to shared memory (PTX ISA, "cp.async")."""

from __future__ import annotations

import numpy as np

from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import Lanes, lane_number, spread, take
from ..operands import Source
from ..syntax import Integer, Not, Register
from ..types import TYPES
from .bulk_copy import bulk_copy
from .load_store import address_of, load, note_access, take_hints
from .mbarrier import arrive_after_copies

_U32 = TYPES["u32"]


@instruction("cp")
def cp(i: Decoder) -> Operation:
    i.need("async")
    if i.flag("mbarrier"):
        return arrive_after_copies(i)
    if i.flag("bulk"):
        return bulk_copy(i)
    if i.flag("commit_group"):
        return Effect(lambda batch: batch.shared.commit_copies)
    if i.flag("wait_group"):
        i.arity(1)
        operand = i.operands[0]
        if not isinstance(operand, Integer):
            raise i.error("a number of groups is expected")
        return _wait(operand.value, commit=False)
    if i.flag("wait_all"):
        return _wait(0, commit=True)
    if i.rest() and i.rest()[0] not in ("ca", "cg"):
        raise i.error(f"cp.async.{i.rest()[0]} is not supported")
    return _copy(i)


def _wait(pending: int, commit: bool) -> Operation:
    def bind(batch: Batch) -> Run:
        def run(lanes: Lanes | None) -> None:
            if commit:
                batch.shared.commit_copies(lanes)
            batch.shared.wait_for_copies(lanes, pending)

        return run

    return Effect(bind)


def _copy(i: Decoder) -> Operation:
    """`cp.async.ca.shared.global [to], [from], size {, source size} {, policy}`."""
    bypass = i.need("ca", "cg") == "cg"
    i.need("shared", "shared::cta", "shared::cluster")
    i.need("global")
    take_hints(i)
    count = i.arity(3, 4)
    size_operand = i.operands[2]
    size = size_operand.value if isinstance(size_operand, Integer) else 0
    if size not in ((16,) if bypass else (4, 8, 16)):
        raise i.error(f"cp.async of {size} bytes")
    filled, ignored = _source_size(i) if count == 4 else (None, None)
    to, origin, line = address_of(i, 0), address_of(i, 1), i.instruction.line

    def bind(batch: Batch) -> Run:
        targets, sources = to.bind(batch), origin.bind(batch)
        sizes = filled.array(batch) if filled else None
        ignores = ignored(batch) if ignored else None

        def run(lanes: Lanes | None) -> None:
            batch.line = line
            places = targets(lanes)
            addresses = sources(lanes)
            given = None
            if sizes is not None:
                given = spread(take(sizes, lanes), len(places)).astype(np.int64)
            elif ignores is not None:
                given = np.where(spread(np.asarray(ignores(lanes)), len(places)), 0, size)
            if given is None or (given == size).all():
                rows = load(batch, "global", addresses, size, lanes, line)
            else:
                rows = _load_part(batch, addresses, size, given, lanes, line)
            note_access(batch, "shared", places, size, True)
            batch.shared.copy_async(places, size, rows, lanes)

        return run

    operation = Effect(bind)
    operation.shared_size = size
    return operation


def _source_size(i: Decoder) -> tuple:
    """The fourth operand: bytes that are copied, or a predicate that says to copy none."""
    operand = i.operands[3]
    if isinstance(operand, Not):
        return None, i.predicate_source(operand)
    if isinstance(operand, Register):
        slot = i.names.register(operand.name)
        if slot is not None and slot.is_predicate:
            return None, i.predicate_source(operand)
    size: Source = i.read(operand, _U32)
    return size, None


def _load_part(
    batch: Batch,
    addresses: np.ndarray,
    size: int,
    given: np.ndarray,
    lanes: Lanes | None,
    line: int,
) -> np.ndarray:
    """The first `given` bytes of each row; the rest is 0. Lanes with 0 read nothing."""
    indices = np.arange(batch.lanes) if lanes is None else lanes.indices
    if (given > size).any():
        bad = int(np.flatnonzero(given > size)[0])
        raise LaneFault(
            f"cp.async with a source of {given[bad]} bytes, of {size}", lane_number(lanes, bad)
        )
    misaligned = np.flatnonzero((given > 0) & (addresses % np.uint64(size) != 0))
    if len(misaligned):
        raise LaneFault(
            f"cp.async of {size} bytes from {int(addresses[misaligned[0]]):#x}, which is no "
            "multiple of it",
            lane_number(lanes, int(misaligned[0])),
        )
    rows = np.zeros((len(addresses), size), np.uint8)
    whole = np.flatnonzero(given == size)
    if len(whole):
        some = Lanes(indices[whole], batch.lanes)
        part = load(batch, "global", addresses[whole], size, some, line, indices[whole])
        rows[whole] = np.ascontiguousarray(part).view(np.uint8).reshape(-1, size)
    for byte in range(size):
        chosen = np.flatnonzero((given > byte) & (given < size))
        if len(chosen):
            some = Lanes(indices[chosen], batch.lanes)
            places = addresses[chosen] + np.uint64(byte)
            rows[chosen, byte] = load(batch, "global", places, 1, some, line, indices[chosen])
    flat = rows.reshape(-1).view(f"u{min(size, 8)}")
    return flat.reshape(-1, size // 8) if size > 8 else flat
