"""A normalization and the packs of its rows become one `abq.norm_pack`, a launch.

The target says whether it has a kernel for that (`norm_pack`). It is asked for the packs of a
normalization at once, then for one after the other. Packs that are left over read the normalized
rows from memory, as other users do: the next residual of a post-norm model, for example.
"""

from __future__ import annotations

from collections.abc import Iterator

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .infrastructure import Unit, register, users, walk
from .lower_norm import norm_pack_kernel

# What an abq.norm_pack has results for: an attention's queries, keys and values.
MAX_PACKS = 3


@register
def fuse_norm_pack(module: ir.Operation, unit: Unit) -> None:
    """Normalize, quantize and pack rows in one launch where the target can."""
    for norm in walk(module, "abq.norm"):
        for packs in _choices(norm):
            if norm_pack_kernel(unit, norm, [_kernel(pack) for pack in packs]) is not None:
                _fuse(norm, packs)
                break


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
