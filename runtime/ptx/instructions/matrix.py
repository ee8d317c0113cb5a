"""Matrix instructions of warps; what they compute stands in tensor.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .. import tensor
from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..errors import LaneFault
from ..lanes import WARP, Lanes, put, take
from ..operands import RegisterView, Source
from ..syntax import Operand
from ..types import TYPES
from .load_store import address_of, load, space_of, store

_U32 = TYPES["u32"]
_SHAPE = re.compile(r"m\d+n\d+k\d+")


class MatrixEffect(Effect):
    """An effect of all 32 lanes of a warp."""

    whole_warp = True


def fragment(sources: Sequence[np.ndarray], batch: Batch, lanes: Lanes | None) -> np.ndarray:
    """Registers as [warps, 32, registers]."""
    count = batch.lanes if lanes is None else lanes.count
    values = np.empty((count, len(sources)), np.uint32)
    for k, source in enumerate(sources):
        values[:, k] = take(source, lanes)
    return values.reshape(-1, WARP, len(sources))


def _check_whole_warps(lanes: Lanes | None) -> None:
    """A guard may have left parts of a warp."""
    if lanes is None:
        return
    indices = lanes.indices
    if (
        len(indices) % WARP
        or (indices[::WARP] % WARP).any()
        or (indices[WARP - 1 :: WARP] - indices[::WARP] != WARP - 1).any()
    ):
        raise LaneFault("not all lanes of the warp execute this instruction", int(indices[0]))


def _spread_out(
    results: Sequence[np.ndarray | None], values: np.ndarray, lanes: Lanes | None
) -> None:
    """[warps, 32, registers] to the registers."""
    flat = values.reshape(-1, len(results))
    for k, out in enumerate(results):
        if out is not None:
            put(out, lanes, flat[:, k])


def _registers(i: Decoder, operands: Sequence[Operand]) -> list[Source]:
    return [i.read(operand, _U32) for operand in operands]


def _bind_all(views: Sequence[RegisterView | None], batch: Batch) -> list[np.ndarray | None]:
    return [view.array(batch) if view else None for view in views]


@instruction("mma")
def mma(i: Decoder) -> Operation:
    """`mma.sync.aligned.<shape>.row.col{.satfinite}.<d>.<a>.<b>.<c>{.and.popc}`."""
    i.need("sync")
    i.need("aligned")
    shape = next((m for m in i.rest() if _SHAPE.fullmatch(m)), None)
    if shape is None:
        raise i.error("the shape is missing")
    i.need(shape)
    i.need("row")
    i.need("col")
    op = "satfinite" if i.flag("satfinite") else ""
    if i.flag("popc"):
        op = f"{i.need('and', 'xor')}.popc"
    types = list(i.rest())
    i.rest().clear()
    if len(types) != 4:
        raise i.error("four types are expected")
    d_type, a_type, b_type, c_type = types
    i.arity(4)
    form = _form(i, shape, a_type, b_type, d_type, c_type, op)
    results = [i.write(operand, _U32) for operand in i.elements(0)]
    operands = [_registers(i, i.elements(k)) for k in (1, 2, 3)]
    counts = (len(results), *(len(operand) for operand in operands))
    expected = (form.c_registers, form.a_registers, form.b_registers, form.c_registers)
    if counts != expected:
        raise i.error(f"{counts} registers of D, A, B, C, where {expected} are expected")

    def bind(batch: Batch) -> Run:
        outs = _bind_all(results, batch)
        sources = [[source.array(batch) for source in operand] for operand in operands]

        def run(lanes: Lanes | None) -> None:
            _check_whole_warps(lanes)
            a, b, c = (fragment(operand, batch, lanes) for operand in sources)
            values = tensor.mma(shape, a_type, b_type, d_type, c_type, op, a, b, c)
            _spread_out(outs, values, lanes)

        return run

    return MatrixEffect(bind)


def _form(i: Decoder, *words: str) -> tensor.MmaForm:
    try:
        return tensor.mma_form(*words)
    except tensor.UnsupportedMma as error:
        raise i.error(str(error)) from None


def _matrices(i: Decoder) -> tuple[int, bool, str]:
    """Modifiers of ldmatrix and stmatrix: the number of matrices, transposed, the space."""
    i.need("sync")
    i.need("aligned")
    i.need("m8n8")
    count = int(i.need("x1", "x2", "x4")[1:])
    transposed = i.flag("trans")
    space = space_of(i)
    i.need("b16")
    i.arity(2)
    if space not in ("shared", "generic"):
        raise i.error("matrices lie in shared memory")
    return count, transposed, space


def _rows_of(addresses: np.ndarray, count: int, batch: Batch, lanes: Lanes | None) -> tuple:
    """The addresses that name rows, their lanes, and these as counters are told of them."""
    if count == 4:
        return addresses, lanes, None
    indices = np.arange(batch.lanes) if lanes is None else lanes.indices
    named = tensor.matrix_lanes(count)
    some = indices.reshape(-1, WARP)[:, named].reshape(-1)
    rows = addresses.reshape(-1, WARP)[:, named].reshape(-1)
    return rows, Lanes(some, batch.lanes), some


@instruction("ldmatrix")
def load_matrix(i: Decoder) -> Operation:
    count, transposed, space = _matrices(i)
    results = [i.write(operand, _U32) for operand in i.elements(0)]
    if len(results) != count:
        raise i.error(f"{len(results)} registers for {count} matrices")
    address, line = address_of(i, 1), i.instruction.line

    def bind(batch: Batch) -> Run:
        addresses = address.bind(batch)
        outs = _bind_all(results, batch)

        def run(lanes: Lanes | None) -> None:
            _check_whole_warps(lanes)
            places, some, named = _rows_of(addresses(lanes), count, batch, lanes)
            rows = load(batch, space, places, 16, some, line, named)
            octets = rows.view(np.uint8).reshape(-1, 8 * count, 16)
            _spread_out(outs, tensor.ldmatrix(octets, transposed), lanes)

        return run

    operation = MatrixEffect(bind)
    operation.shared_size = 16
    return operation


@instruction("stmatrix")
def store_matrix(i: Decoder) -> Operation:
    count, transposed, space = _matrices(i)
    sources = _registers(i, i.elements(1))
    if len(sources) != count:
        raise i.error(f"{len(sources)} registers for {count} matrices")
    address, line = address_of(i, 0), i.instruction.line

    def bind(batch: Batch) -> Run:
        addresses = address.bind(batch)
        arrays = [source.array(batch) for source in sources]

        def run(lanes: Lanes | None) -> None:
            _check_whole_warps(lanes)
            octets = tensor.stmatrix(fragment(arrays, batch, lanes), transposed)
            rows = np.ascontiguousarray(octets).reshape(-1).view(np.uint64).reshape(-1, 2)
            places, some, named = _rows_of(addresses(lanes), count, batch, lanes)
            store(batch, space, places, 16, rows, some, line, named)

        return run

    operation = MatrixEffect(bind)
    operation.shared_size = 16
    return operation


@instruction("movmatrix")
def move_matrix(i: Decoder) -> Operation:
    for modifier in ("sync", "aligned", "m8n8", "trans", "b16"):
        i.need(modifier)
    i.arity(2)
    result, source = i.result(0, _U32), i.source(1, _U32)

    def bind(batch: Batch) -> Run:
        out, array = result.array(batch) if result else None, source.array(batch)

        def run(lanes: Lanes | None) -> None:
            _check_whole_warps(lanes)
            values = tensor.movmatrix(fragment([array], batch, lanes)[..., 0])
            if out is not None:
                put(out, lanes, values.reshape(-1))

        return run

    return MatrixEffect(bind)
