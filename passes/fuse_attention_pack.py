"""A pack of what attention gives becomes part of it: `abq.attention_pack`.

The heads of a row lie behind each other in the result, so that rows before the output projection
are packed as they are made. For a few rows one kernel does both, where the target has one; others
are packed by a launch of their own.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, walk
from .loops.generics import groups

_HEADS_IN_COLUMNS = [[0], [1], [2, 3]]


@register
def fuse_attention_pack(module: ir.Operation, unit: Unit) -> None:
    """Make packs part of the attention before them, on a GPU."""
    if not unit.known_target.objects.on_device:
        return
    for pack in walk(module, "abq.pack"):
        attention = _attention(pack)
        if attention is not None:
            _fuse(pack, attention)


def _attention(pack: ir.Operation) -> ir.Operation | None:
    """The attention whose rows, with all heads, are packed with scales of their own."""
    collapse = defining_op(pack.opview.x)
    if pack.opview.x_scale is not None or collapse is None:
        return None
    if collapse.name != "tensor.collapse_shape" or groups(collapse) != _HEADS_IN_COLUMNS:
        return None
    attention = defining_op(collapse.operands[0])
    if attention is None or attention.name != "abq.attention":
        return None
    rows_first = ir.DenseI64ArrayAttr(attention.attributes["rows_first"])[3]
    static = abq.shape(attention.opview.result)[2:]
    return attention if rows_first and abq.DYNAMIC not in static else None


def _fuse(pack: ir.Operation, attention: ir.Operation) -> None:
    view = attention.opview
    with ir.InsertionPoint(attention), attention.location:
        fused = abq.AttentionPackOp(
            *(view.q, view.k, view.v, view.scale, view.rows_first, view.mask_kind),
            *(view.mask_map, view.guarded, view.result.type),
            mask=view.mask,
            kernel=pack.opview.kernel,
            packed=pack.results[0].type,
        ).operation
    if abq.ROWS in attention.attributes:
        fused.attributes[abq.ROWS] = attention.attributes[abq.ROWS]
    pack.results[0].replace_all_uses_with(fused.results[1])
    pack.erase()
    attention.results[0].replace_all_uses_with(fused.results[0])
    attention.erase()
