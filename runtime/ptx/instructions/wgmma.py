"""Matrix instructions of warpgroups (PTX ISA, "wgmma"); what they compute is in warpgroup.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from .. import warpgroup
from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import Lanes, put, spread, take
from ..syntax import Integer, Register, Vector
from ..tensor import UnsupportedMma
from ..types import TYPES
from ..warpgroup import A_REGISTERS, CHUNK, THREADS, MatrixDescriptor, WgmmaForm

_U32, _U64 = TYPES["u32"], TYPES["u64"]
_SHAPE = re.compile(r"m64n(\d+)k(\d+)")


class WarpgroupEffect(Effect):
    """An effect of all 128 threads of a warpgroup."""

    whole_warp = True
    whole_warpgroup = True
    asynchronous = True


class WgmmaEffect(WarpgroupEffect):
    """A wgmma: the registers of its accumulators and fragments, which others must leave alone."""

    shared_size = CHUNK

    def __init__(self, bind: Callable[[Batch], Run], registers: dict[int, str]) -> None:
        super().__init__(bind)
        self.in_flight = registers


@instruction("wgmma")
def wgmma(i: Decoder) -> Operation:
    kind = i.need("mma_async", "fence", "commit_group", "wait_group")
    i.need("sync")
    i.need("aligned")
    if kind == "mma_async":
        return _multiply(i)
    if kind == "fence":
        i.arity(0)
        return WarpgroupEffect(lambda batch: _on_whole_groups(batch.flights.fence))
    if kind == "commit_group":
        i.arity(0)
        return WarpgroupEffect(lambda batch: _on_whole_groups(batch.flights.commit))
    i.arity(1)
    pending = i.operands[0]
    if not isinstance(pending, Integer):
        raise i.error("a number of groups is expected")
    return WarpgroupEffect(lambda batch: _wait(batch, pending.value))


def _on_whole_groups(run: Run) -> Run:
    def checked(lanes: Lanes | None) -> None:
        _check_whole_groups(lanes)
        run(lanes)

    return checked


def _wait(batch: Batch, pending: int) -> Run:
    def run(lanes: Lanes | None) -> None:
        _check_whole_groups(lanes)
        completed = batch.flights.wait(lanes, pending)
        batch.shared.warpgroups_waited(lanes, completed)

    return run


def _check_whole_groups(lanes: Lanes | None) -> None:
    """A guard may have left parts of a warpgroup."""
    if lanes is not None and not _is_whole(lanes.indices):
        raise LaneFault(
            "not all threads of the warpgroup execute this instruction", int(lanes.indices[0])
        )


def _is_whole(indices: np.ndarray) -> bool:
    if len(indices) % THREADS:
        return False
    first = indices[::THREADS]
    last = indices[THREADS - 1 :: THREADS]
    return bool((first % THREADS == 0).all() and (last - first == THREADS - 1).all())


# ---- mma_async


def _form(i: Decoder) -> WgmmaForm:
    shape = next((match for word in i.rest() if (match := _SHAPE.fullmatch(word))), None)
    if shape is None:
        raise i.error("the shape is missing")
    i.need(shape[0])
    op = f"{i.need('and')}.popc" if i.flag("popc") else ""
    if i.flag("satfinite"):
        raise i.error("wgmma.satfinite is not supported")
    types = list(i.rest())
    i.rest().clear()
    if len(types) != 3:
        raise i.error("three types are expected")
    try:
        return warpgroup.wgmma_form(int(shape[1]), int(shape[2]), *types, op)
    except UnsupportedMma as error:
        raise i.error(str(error)) from None


def _immediates(i: Decoder, form: WgmmaForm, from_registers: bool) -> tuple[int, bool, bool]:
    """The sign of the products, and which of A and B are transposed."""
    operands = i.operands[4:]
    count = (3 if from_registers else 4) if form.is_float else 0
    if len(operands) != count or not all(isinstance(operand, Integer) for operand in operands):
        raise i.error(f"{count} immediate operands are expected behind scale-d")
    values = [operand.value for operand in operands if isinstance(operand, Integer)]
    if not values:
        return 1, False, False
    scales, transposes = values[:2], values[2:]
    if not {*scales} <= {1, -1} or not {*transposes} <= {0, 1}:
        raise i.error("imm-scale is 1 or -1, imm-trans is 0 or 1")
    transpose_a = not from_registers and bool(transposes[0])
    return scales[0] * scales[1], transpose_a, bool(transposes[-1])


def _multiply(i: Decoder) -> Operation:
    """`d, a-desc or {a}, b-desc, scale-d {, imm-scale-a, imm-scale-b, imm-trans-a, imm-trans-b}`"""
    form = _form(i)
    if len(i.operands) < 4:
        raise i.error("D, A, B and scale-d are expected")
    elements = i.elements(0)
    results = [i.write(element, _U32) for element in elements]
    before = [i.read(element, _U32) for element in elements]
    if len(results) != form.registers:
        raise i.error(f"{len(results)} registers of D, where {form.registers} are expected")
    from_registers = isinstance(i.operands[1], Vector)
    signs, transpose_a, transpose_b = _immediates(i, form, from_registers)
    sources = [i.read(element, _U32) for element in i.elements(1)] if from_registers else []
    if from_registers and len(sources) != A_REGISTERS:
        raise i.error(f"{len(sources)} registers of A, where {A_REGISTERS} are expected")
    a_descriptor = None if from_registers else i.source(1, _U64)
    b_descriptor = i.source(2, _U64)
    scale = i.predicate_source(i.operands[3])
    accumulators = _numbered(i, elements)
    fragments = _numbered(i, i.elements(1)) if from_registers else {}
    line = i.instruction.line

    def bind(batch: Batch) -> Run:
        outs = [view.array(batch) if view else None for view in results]
        olds = [source.array(batch) for source in before]
        a_registers = [source.array(batch) for source in sources]
        a_bits = a_descriptor.array(batch) if a_descriptor else None
        b_bits = b_descriptor.array(batch)
        scales = scale(batch)
        flights = batch.flights
        own, read = flights.rows_of(accumulators), flights.rows_of(fragments)
        identity = form.n << 16 | form.k

        def run(lanes: Lanes | None) -> None:
            _check_whole_groups(lanes)
            batch.line = line
            flights.issue(own, read, identity, lanes, line)
            if a_bits is not None:
                a = _rows(batch, a_bits, lanes, warpgroup.ROWS, transpose_a, "A")
            else:
                a = warpgroup.rows_of_fragment(_fragment(a_registers, batch, lanes))
            b = _rows(batch, b_bits, lanes, form.n, transpose_b, "B")
            keep = _uniform(batch, scales(lanes), lanes, "scale-d")
            d = _fragment(olds, batch, lanes) if keep.any() else None
            if d is not None and not keep.all():
                d = d * keep[:, None, None].astype(np.uint32)
            values = warpgroup.wgmma(form, a, b, d, signs)
            flat = values.reshape(-1, form.registers)
            for k, out in enumerate(outs):
                if out is not None:
                    put(out, lanes, flat[:, k])

        return run

    return WgmmaEffect(bind, accumulators | fragments)


def _numbered(i: Decoder, elements: Sequence) -> dict[int, str]:
    """Numbers and names of registers."""
    found = {}
    for element in elements:
        slot = i.names.register(element.name) if isinstance(element, Register) else None
        if slot is None:
            raise i.error("registers are expected")
        found[slot.number] = element.name
    return found


def _fragment(arrays: Sequence[np.ndarray], batch: Batch, lanes: Lanes | None) -> np.ndarray:
    """Registers as [warpgroups, 128, registers]."""
    count = batch.lanes if lanes is None else lanes.count
    values = np.empty((count, len(arrays)), np.uint32)
    for k, array in enumerate(arrays):
        values[:, k] = take(array, lanes)
    return values.reshape(-1, THREADS, len(arrays))


def _uniform(batch: Batch, values: np.ndarray, lanes: Lanes | None, what: str) -> np.ndarray:
    """A value for each warpgroup, which all of its threads must agree on."""
    count = batch.lanes if lanes is None else lanes.count
    by_group = spread(np.asarray(values), count).reshape(-1, THREADS)
    differs = (by_group != by_group[:, :1]).any(axis=1)
    if differs.any():
        first = int(np.flatnonzero(differs)[0]) * THREADS
        raise LaneFault(
            f"threads of the warpgroup disagree about {what}",
            first if lanes is None else int(lanes.indices[first]),
        )
    return by_group[:, 0]


def _rows(
    batch: Batch,
    descriptors: np.ndarray,
    lanes: Lanes | None,
    rows: int,
    transposed: bool,
    matrix: str,
) -> np.ndarray:
    """The matrices that descriptors describe, [warpgroups, rows, 32 bytes]."""
    bits = _uniform(batch, take(descriptors, lanes), lanes, f"the descriptor of {matrix}")
    first = np.arange(batch.lanes)[::THREADS] if lanes is None else lanes.indices[::THREADS]
    layouts = {}
    for word in {*bits.tolist()}:
        descriptor = MatrixDescriptor.decode(word)
        problem = descriptor.problem(word)
        if problem:
            raise LaneFault(f"{matrix}: {problem}", int(first[np.flatnonzero(bits == word)[0]]))
        layouts[word] = descriptor.chunks(rows, transposed).reshape(-1)
    addresses = np.stack([layouts[word] for word in bits.tolist()])
    per_group = addresses.shape[1]
    named = np.repeat(first, per_group)
    batch.note_async("shared", addresses.reshape(-1), CHUNK, False, named)
    chunks = batch.shared.load_for_warpgroups(addresses, first)
    octets = np.ascontiguousarray(chunks).view(np.uint8)
    if transposed:
        return warpgroup.rows_of_transposed(octets.reshape(-1, rows // 8, 16, CHUNK))
    return octets.reshape(-1, rows, warpgroup.ROW_BYTES)
