"""`abq.matmul` and `abq.fused_matmul` become launches of their kernels, by ranges of rows.

Those that `merge-products` has marked become one launch: of one kernel where a product's epilogue
reads another one's result, and side by side where they are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abqc.dialects import abq
from abqc.dialects.abq_conv import epilogue_inputs
from abqc.dialects.epilogue import Stage
from abqc.dialects.mlir import arith, ir

from ..infrastructure import defining_op
from ..kernels.launch import WITH_NEXT
from ..loops.constant_values import zeros_symbol
from ..loops.epilogues import epilogue
from ..merge_products import chains_of
from ..resolve_dims import index
from .rules import Lowering, by_rows, ceil_div, product


def lower_matmul(low: Lowering, op: ir.Operation) -> None:
    """The last one of some that are launched together launches them all."""
    low.together.append(op)
    if WITH_NEXT in op.attributes:
        return
    ops, low.together = low.together, []
    view = op.opview
    made = defining_op(view.x) if view.x in low.buffers else None
    source = view.x if made is None else made.operands[0]
    *lead, _ = low.sizes(source)
    rows, x = product(lead), low.buffer(view.x)
    chains = [_Chain.of(low, chain, rows) for chain in chains_of(ops)]
    limits = list(ir.DenseI64ArrayAttr(op.attributes["max_rows"]))
    splits = _splits(op, len(limits))

    def launch_variant(i: int) -> None:
        split, reduce = splits[i]
        if split > 1:
            _launch_split(low, chains[0], i, split, reduce, x, rows)
            return
        for chain in chains:
            kernel = chain.kernel(low, i)
            arguments = [x, *chain.arguments, rows, index(chain.n)]
            with_next = chain is not chains[-1]
            low.launch(kernel, _grid(low, kernel, rows, chain.n), arguments, with_next=with_next)

    by_rows(rows, len(limits), limits, launch_variant)
    for chain in chains:
        for each, y in zip(chain.ops, chain.results, strict=True):
            low.finish(each, y, [*lead, index(chain.n)])


@dataclass(frozen=True)
class _Chain:
    """Products of `n` columns that one kernel computes: each one's epilogue may read the results of
    those before. `arguments` are those of the kernel between x and m, `earlier` what
    `Stage.earlier` says."""

    n: int
    ops: list[ir.Operation]
    results: list[ir.Value]
    arguments: list[ir.Value]
    earlier: list[tuple[int | None, ...]]

    @staticmethod
    def of(low: Lowering, ops: list[ir.Operation], rows: ir.Value) -> _Chain:
        """Of these products; allocates their results."""
        n = ir.IntegerAttr(ops[0].attributes["n"]).value
        chain, made = _Chain(n, ops, [], [], []), [op.results[0] for op in ops]
        for op in ops:
            view, inputs = op.opview, _inputs(op)
            size = arith.MulIOp(rows, index(n)).result
            y = low.allocate(size, abq.element(op.results[0]))
            others = [low.buffer(value) for value in inputs if value not in made]
            chain.arguments.extend([low.buffer(view.w), _bias(low, view.bias, n), *others, y])
            chain.earlier.append(tuple(made.index(v) if v in made else None for v in inputs))
            chain.results.append(y)
        return chain

    def kernel(self, low: Lowering, i: int) -> str:
        """The kernel of variant `i`, now known to the unit."""
        stages = [
            Stage(low.unit.kernels[_kernels(op)[i]], epilogue(op), earlier)
            for op, earlier in zip(self.ops, self.earlier, strict=True)
        ]
        kernel: Any = stages[0].kernel
        if len(stages) > 1 or stages[0].epilogue is not None:
            kernel = low.unit.known_target.fused_product(stages)
            assert kernel is not None, "fuse-epilogues and merge-products ask the target before"
            low.unit.kernels[kernel.name] = kernel
        name: str = kernel.name
        return name


def _inputs(op: ir.Operation) -> list[ir.Value]:
    return epilogue_inputs(op.opview) if op.name == "abq.fused_matmul" else []


def _kernels(op: ir.Operation) -> list[str]:
    return [ir.StringAttr(name).value for name in ir.ArrayAttr(op.attributes["kernels"])]


def _grid(low: Lowering, kernel: str, rows: ir.Value, n: int) -> ir.Value:
    block_m, block_n = low.unit.kernels[kernel].block
    return arith.MulIOp(ceil_div(rows, block_m), ceil_div(index(n), block_n)).result


def _launch_split(
    low: Lowering,
    chain: _Chain,
    i: int,
    split: int,
    reduce: str,
    x: ir.Value,
    rows: ir.Value,
) -> None:
    """Partial sums of `split` parts of the grid, and the kernel that adds them."""
    (op,), (w, bias, y) = chain.ops, chain.arguments
    name, n = _kernels(op)[i], index(chain.n)
    parts = low.allocate(product([index(split), rows, n]), ir.IntegerType.get_signless(32))
    grid = arith.MulIOp(_grid(low, name, rows, chain.n), index(split)).result
    low.launch(name, grid, [x, w, bias, parts, rows, n])
    low.launch(reduce, _grid(low, reduce, rows, chain.n), [parts, x, w, bias, y, rows, n])


def _splits(op: ir.Operation, count: int) -> list[tuple[int, str]]:
    """Of each variant of a matmul: the parts of its grid and the kernel that adds them."""
    if "splits" not in op.attributes:
        return [(1, "")] * count
    reduces = [ir.StringAttr(a).value for a in ir.ArrayAttr(op.attributes["reduces"])]
    return list(zip(ir.DenseI64ArrayAttr(op.attributes["splits"]), reduces, strict=True))


def _bias(low: Lowering, bias: ir.Value | None, n: int) -> ir.Value:
    """Kernels always add a bias; without one they add the zeros that all matmuls share."""
    if bias is not None:
        return low.buffer(bias)
    return low.constant(zeros_symbol(n, low.unit.store), [n], ir.F32Type.get())
