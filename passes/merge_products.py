"""Products that read the same activations are launched as one.

    q = x Wq    k = x Wk    v = x Wv         one grid: theirs side by side
    up = silu(x Wg) * (x Wu)                 one kernel: an index of the grid computes its block of
                                             both, and the epilogue of the second reads the first

Nothing is concatenated: weights stay what they are (tied, imported, calibrated each for itself),
and results are buffers of their own. What merges are launches, each of which ends with waiting for
all threads, and grids, which then share these evenly. Products are merged where the rows that they
read are packed alike, after strategies have been chosen, and where ranges of rows are the same. On
a GPU they must have the same kernels, one of which then knows several products
(`Target.merges_products`); targets choose the schedules of such products together.

Members of a group stand one behind the other, all but the last with the attribute `abq.with_next`,
which launches have then; `lower-abq` comes next.
"""

from __future__ import annotations

from typing import Any

from abqc.dialects.epilogue import Stage
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, walk
from .kernels.launch import WITH_NEXT
from .loops.epilogues import PRODUCTS, inputs_of


@register
def merge_products(module: ir.Operation, unit: Unit) -> None:
    """Products that read the same activations are launched as one."""
    alike: dict[tuple[ir.Value, tuple[int, ...]], list[ir.Operation]] = {}
    for op in walk(module):
        if op.name in PRODUCTS:
            limits = tuple(ir.DenseI64ArrayAttr(op.attributes["max_rows"]))
            alike.setdefault((op.operands[0], limits), []).append(op)
    for products in alike.values():
        while products:
            first, *others = products
            group, products = [first], []
            for op in others:
                (group if _joins(op, group, unit) else products).append(op)
            if len(group) > 1:
                _mark(group)


def _joins(op: ir.Operation, group: list[ir.Operation], unit: Unit) -> bool:
    """Whether `op` can be launched with `group`, where that stands."""
    first = group[0]
    if op.block != first.block:
        return False
    if not unit.known_target.merges_products([_kernels(each, unit) for each in (*group, op)]):
        return False
    results = [member.results[0] for member in group]
    sources = [value for value in op.operands if value in results]
    if not all(_is_known(value, first) for value in op.operands if value not in sources):
        return False
    return not sources or _chains(op, group, unit)


def _kernels(op: ir.Operation, unit: Unit) -> list[Any]:
    """Those of a product by ranges of rows, and those that add its splits."""
    names = [*ir.ArrayAttr(op.attributes["kernels"])]
    if "reduces" in op.attributes:
        names += ir.ArrayAttr(op.attributes["reduces"])
    texts = [ir.StringAttr(name).value for name in names]
    return [unit.kernels[text] for text in texts if text]


def _is_known(value: ir.Value, place: ir.Operation) -> bool:
    """Whether `value` is there at `place`; weights can be."""
    made = defining_op(value)
    if made is None or made.name == "abq.weight" or made.block != place.block:
        return True
    return made.is_before_in_block(place)


def _chains(op: ir.Operation, group: list[ir.Operation], unit: Unit) -> bool:
    """Whether one kernel computes `op` and those of the group that its epilogue reads.

    They are one chain, of equal n and with equal blocks, and read element by element.
    """
    chains = chains_of(group)
    read = [chain for chain in chains if any(m.results[0] in list(op.operands) for m in chain)]
    if len(read) != 1 or any(member.attributes["n"] != op.attributes["n"] for member in read[0]):
        return False
    results = [member.results[0] for member in read[0]]
    if any(each.value in results and each.read != "element" for each in inputs_of(op)):
        return False
    kernels = [ir.ArrayAttr(each.attributes["kernels"]) for each in (*read[0], op)]
    return all(
        unit.known_target.fused_product(
            [Stage(unit.kernels[ir.StringAttr(name).value]) for name in variant]
        )
        is not None
        for variant in zip(*kernels, strict=True)
    )


def chains_of(group: list[ir.Operation]) -> list[list[ir.Operation]]:
    """The members of a group by kernel: an epilogue reads results of its own chain."""
    chains: list[list[ir.Operation]] = []
    for op in group:
        read = list(op.operands)
        chain = next((c for c in chains if any(each.results[0] in read for each in c)), None)
        if chain is None:
            chains.append([op])
        else:
            chain.append(op)
    return chains


def _mark(group: list[ir.Operation]) -> None:
    """Bring the members of a group together, with their weights in front."""
    first, last = group[0], group[0]
    for op in group[1:]:
        for value in op.operands:
            made = defining_op(value)
            if made is not None and made.name == "abq.weight" and first.is_before_in_block(made):
                made.move_before(first)
        op.move_after(last)
        last = op
    for op in group[:-1]:
        op.attributes[WITH_NEXT] = ir.UnitAttr.get()
