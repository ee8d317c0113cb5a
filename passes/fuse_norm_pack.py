"""A normalization and the packs of its rows become one `abq.norm_pack`, a launch.

The target says whether it has a kernel for that (`norm_pack`). It is asked for the packs of a
normalization at once, then for one after the other. Packs that are left over read the normalized
rows from memory, as other users do: the next residual of a post-norm model, for example.

On a CPU normalizations are loops, fused with what is around them; those whose rows are packed are
recognized again (`patterns/norm_chain.py`), all others stay loops.
"""

from __future__ import annotations

from collections.abc import Iterator

from abqc.dialects import abq
from abqc.dialects.mlir import ir
from abqc.dialects.norm_spec import MAX_COLUMNS

from .infrastructure import Unit, defining_op, is_used, register, users, walk
from .loops.generics import is_elementwise
from .lowering.norm import norm_pack_kernel
from .patterns.norm_chain import match_norm

# What an abq.norm_pack has results for: an attention's queries, keys and values.
MAX_PACKS = 3


@register
def fuse_norm_pack(module: ir.Operation, unit: Unit) -> None:
    """Normalize, quantize and pack rows in one launch where the target can."""
    for norm in walk(module, "abq.norm"):
        _fuse_packs(norm, unit)
    for op in [defining_op(pack.opview.x) for pack in walk(module, "abq.pack")]:
        if op is not None and is_elementwise(op) and is_used(op.results[0]):
            _fuse_loops(op, unit)


def _fuse_packs(norm: ir.Operation, unit: Unit) -> bool:
    """Whether the target could take packs along."""
    for packs in _choices(norm):
        if norm_pack_kernel(unit, norm, [_kernel(pack) for pack in packs]) is not None:
            _fuse(norm, packs)
            return True
    return False


def _fuse_loops(op: ir.Operation, unit: Unit) -> None:
    """The same for a normalization that ends in the loop `op`."""
    norm = match_norm(op)
    if norm is None or abq.shape(op.results[0])[-1] > MAX_COLUMNS:
        return
    type_ = op.results[0].type
    with ir.InsertionPoint(op), op.location:
        named = abq.NormOp(
            norm.x,
            ir.StringAttr.get(norm.kind),
            ir.FloatAttr.get(ir.F32Type.get(), norm.epsilon),
            type_,
            type_,
            weight=norm.weight,
            bias=norm.bias,
        ).operation
    op.results[0].replace_all_uses_with(named.results[0])
    if not _fuse_packs(named, unit):
        named.results[0].replace_all_uses_with(op.results[0])
        named.erase()


def _choices(norm: ir.Operation) -> Iterator[list[ir.Operation]]:
    """Which packs might be fused, the best choice first."""
    found = [user.operation for user in users(norm.results[0])]
    packs = [op for op in found if op.name == "abq.pack" and op.opview.x_scale is None]
    packs.sort(key=_kernel)  # kernels are shared whatever the order of their users
    if packs:
        yield packs[:MAX_PACKS]
    if len(packs) > 1:
        yield from ([pack] for pack in packs)


def _kernel(pack: ir.Operation) -> str:
    return ir.StringAttr(pack.opview.kernel).value


def _fuse(norm: ir.Operation, packs: list[ir.Operation]) -> None:
    view = norm.opview
    first, *rest = (pack.results[0].type for pack in packs)
    second, third = (*rest, None, None)[:2]
    with ir.InsertionPoint(norm), norm.location:
        fused = abq.NormPackOp(
            view.x,
            view.kind,
            view.epsilon,
            view.result.type,
            view.sum.type,
            kernels=ir.ArrayAttr.get([pack.opview.kernel for pack in packs]),
            first=first,
            second=second,
            third=third,
            residual=view.residual,
            weight=view.weight,
            bias=view.bias,
        )
    for pack, packed in zip(packs, abq.packs_of(fused), strict=True):
        pack.results[0].replace_all_uses_with(packed)
        pack.erase()
    view.result.replace_all_uses_with(fused.result)
    view.sum.replace_all_uses_with(fused.sum)
    norm.erase()
