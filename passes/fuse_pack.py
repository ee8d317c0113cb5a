"""An elementwise loop before a pack becomes its prologue: `abq.fused_pack`, one launch.

    pack(silu(gate) * up)      what multiplies the down projection of a feed-forward part
    pack(gelu(x))

The rows between them are never in memory. A loop is taken where nothing but the pack reads its
result, and where all that it reads are floats with an element at each place of the result, or with
one for each channel; the target says whether it has a kernel (`fused_pack`).
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_conv import EPILOGUE_INPUTS
from abqc.dialects.abq_products import FusedPackOp
from abqc.dialects.epilogue import Read
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.epilogues import Input, extend_epilogue, is_epilogue
from .loops.generics import dims, inputs, is_identity, maps
from .lowering.pack import fused_pack_kernel


@register
def fuse_pack(module: ir.Operation, unit: Unit) -> None:
    """Make the loops before packs their prologues where the target can."""
    for pack in walk(module, "abq.pack"):
        loop = defining_op(pack.opview.x)
        if loop is None or loop.name != "linalg.generic" or not is_epilogue(loop):
            continue
        alone = all(user.operation == pack for user in users(loop.results[0]))
        if alone and loop.block == pack.block and pack.opview.x_scale is None:
            _fuse(pack, loop, unit)


def _fuse(pack: ir.Operation, loop: ir.Operation, unit: Unit) -> None:
    given = _inputs(loop)
    if given is None:
        return
    x, *others = given
    with ir.InsertionPoint(pack), ir.Location.fused([loop.location, pack.location]):
        fused = FusedPackOp(
            x.value,
            pack.opview.kernel,
            pack.results[0].type,
            reads=ir.ArrayAttr.get([ir.StringAttr.get(each.read) for each in others]),
            **{name: each.value for name, each in zip(EPILOGUE_INPUTS, others, strict=False)},
        ).operation
    extend_epilogue(fused.regions[0], pack, loop, x.value, others)
    if fused_pack_kernel(unit, fused) is None:
        fused.erase()
        return
    pack.results[0].replace_all_uses_with(fused.results[0])
    pack.erase()
    loop.erase()


def _inputs(loop: ir.Operation) -> list[Input] | None:
    """What the loop reads, first a tensor of the result's shape; None where a pack could not."""
    found: list[Input] = []
    for value, map_ in zip(inputs(loop), maps(loop), strict=False):
        read = _read(loop, value, map_)
        if read is None:
            return None
        found.append(Input(value, map_, read))
    found = list(dict.fromkeys(sorted(found, key=lambda each: each.read != "element")))
    whole = [each for each in found if each.read == "element"]
    mixed = len({each.value for each in found}) < len(found)  # one tensor in two ways
    return found if whole and not mixed and len(found) <= 1 + len(EPILOGUE_INPUTS) else None


def _read(loop: ir.Operation, value: ir.Value, map_: ir.AffineMap) -> Read | None:
    """How a tensor is read by the indices of the loop's result."""
    if not isinstance(value.type, ir.RankedTensorType):
        return None
    if not isinstance(abq.element(value), ir.F32Type):
        return None
    if is_identity(map_):
        return "element"
    channels = dims(map_) == [map_.n_dims - 1] and len(abq.shape(value)) == 1
    return "channel" if channels else None
