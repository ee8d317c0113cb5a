"""`abq.matmul` and `abq.fused_matmul` become launches of their kernels, by ranges of rows.

Those that `merge-products` has marked become one launch: of one kernel where a product's epilogue
reads another one's result, and side by side where they are independent, on a GPU by a kernel whose
grid has the blocks of all (codegen/gpu/matmul/merged.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from abqc.dialects import abq
from abqc.dialects.abq_conv import epilogue_inputs
from abqc.dialects.epilogue import Stage
from abqc.dialects.mlir import arith, ir, scf

from ..infrastructure import Unit
from ..kernels.counters import COUNTERS_EACH, counters_of
from ..kernels.launch import WITH_NEXT
from ..loops.constant_values import zeros_symbol
from ..loops.epilogues import body_of, epilogue
from ..merge_products import chains_of
from ..resolve_dims import index
from .rules import Lowering, by_rows, ceil_div, product


def lower_matmul(low: Lowering, op: ir.Operation) -> None:
    """The last one of some that are launched together launches them all."""
    low.together.append(op)
    if WITH_NEXT in op.attributes:
        return
    ops, low.together = low.together, []
    launch_products(low, ops)


def launch_products(low: Lowering, ops: list[ir.Operation], gate: Gate | None = None) -> None:
    """Launch products of the same rows; with a `gate`, the pack that alone reads their results."""
    op = ops[-1]
    view = op.opview
    *lead, _ = low.sizes(view.x)
    rows, x = product(lead), low.buffer(view.x)
    chains = [_Chain.of(low, chain, rows) for chain in chains_of(ops)]
    limits = list(ir.DenseI64ArrayAttr(op.attributes["max_rows"]))
    splits = _splits(op, len(limits))

    def launch_variant(i: int) -> None:
        split, reduce = splits[i]
        if low.unit.known_target.objects.on_device:
            _launch_on_device(low, chains, i, split, reduce, x, rows, gate)
            return
        for chain in chains:
            kernel = chain.kernel(low, i)
            arguments = [x, *chain.arguments, rows, index(chain.n)]
            with_next = chain is not chains[-1]
            grid = _grid(low, kernel, rows, chain.n)
            low.launch(kernel, grid, arguments, with_next=with_next, by_rows=True)

    by_rows(rows, len(limits), limits, launch_variant)
    for chain in chains:
        for each, y in zip(chain.ops, chain.results, strict=True):
            low.finish(each, y, [*lead, index(chain.n)])


@dataclass(frozen=True)
class Gate:
    """An `abq.fused_pack` that is launched with the products that it reads: the packed rows, and a
    launch of its own by (results of the products, in their order)."""

    op: ir.Operation
    packed: ir.Value
    launch: Callable[[list[ir.Value]], None]


def gated_product(
    unit: Unit, products: list[ir.Operation], pack: ir.Operation, i: int
) -> Any | None:
    """The target's kernel of variant `i` of these products, or of its reduction, and of the
    `abq.fused_pack` that reads them; None where it has none."""
    split, reduce = _splits(products[0], i + 1)[i]
    name = reduce if split > 1 else _kernels(products[0])[i]
    prologue = unit.kernels[ir.StringAttr(pack.attributes["kernel"]).value]
    results = [op.results[0] for op in products]
    order = tuple(results.index(v) for v in (pack.opview.x, *epilogue_inputs(pack.opview)))
    reads: list[Any] = ["element"] * (len(order) - 1)
    body = body_of(pack.regions[0].blocks[0], reads)
    return unit.device_target.gated_product(
        unit.kernels[name], len(products), prologue, body, order, reduces=split > 1
    )


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


def _launch_on_device(
    low: Lowering,
    chains: list[_Chain],
    i: int,
    split: int,
    reduce: str,
    x: ir.Value,
    rows: ir.Value,
    gate: Gate | None,
) -> None:
    """One launch for all products; where K has `split` parts, which give partial sums, another
    one that adds them. The last one has the gate, where it can."""
    target, parts, ns = low.unit.known_target, len(chains), [index(chain.n) for chain in chains]
    names = {_kernels(chain.ops[0])[i] for chain in chains}
    assert len(names) == 1, "merge-products asks the target before"
    kernel = low.unit.kernels[names.pop()]
    outputs = [chain.results[0] for chain in chains]
    partial = outputs
    if split > 1:
        i32 = ir.IntegerType.get_signless(32)
        partial = [low.allocate(product([index(split), rows, n]), i32) for n in ns]
    weights = [chain.arguments[:2] for chain in chains]
    both = None
    if gate is not None:
        both = gated_product(low.unit, [chain.ops[0] for chain in chains], gate.op, i)
    counters: list[ir.Value] = []
    shares: list[list[ir.Value]] = [[] for _ in chains]
    if kernel.stream:
        taken = [counters_of(low.module, chain.ops[0]) for chain in chains]
        counters = [taken[0].buffer]
        shares = [
            [_slots(low, kernel, rows, n), index(own.first)]
            for own, n in zip(taken, ns, strict=True)
        ]
    (w, y, n, share), *more = zip(weights, partial, ns, shares, strict=True)
    arguments = [x, *w, y, rows, n, *share, *counters]
    arguments += [value for w, y, n, share in more for value in (*w, y, n, *share)]
    merged = kernel if parts == 1 else target.merged_matmul(kernel, parts, split)
    if split > 1:
        _launch_grids(low, merged, rows, ns, split, arguments)
        kernel = low.unit.kernels[reduce]
        merged = kernel if parts == 1 else target.merged_reduce(kernel, parts)
        (sums, w, y, n), *others = zip(partial, weights, outputs, ns, strict=True)
        arguments = [sums, x, *w, y, rows, n]
        for sums, w, y, n in others:
            arguments += [sums, *w, y, n]

    def launch_alone() -> None:
        _launch_grids(low, merged, rows, ns, 1, arguments)
        if gate is not None:
            gate.launch(outputs)

    tiles = -(-chains[0].n // kernel.block[1])
    if gate is None or both is None or tiles > COUNTERS_EACH:
        launch_alone()
        return
    few = arith.CmpIOp(arith.CmpIPredicate.ule, rows, index(kernel.block[0])).result
    branches = scf.IfOp(few, has_else=True)
    with ir.InsertionPoint(branches.then_block):
        of_gate = counters_of(low.module, gate.op)
        more_arguments = [gate.packed, of_gate.buffer, index(of_gate.first)]
        _launch_grids(low, both, rows, ns, 1, [*arguments, *more_arguments])
        scf.YieldOp([])
    with ir.InsertionPoint(branches.else_block):
        launch_alone()
        scf.YieldOp([])


def _slots(low: Lowering, kernel: Any, rows: ir.Value, n: ir.Value) -> ir.Value:
    """The workspace of blocks that share tiles of a product."""
    size = product([_blocks(kernel, rows, n), index(kernel.stream.slot_bytes // 4)])
    return low.allocate(size, ir.IntegerType.get_signless(32))


def _blocks(kernel: Any, rows: ir.Value, n: ir.Value, split: int = 1) -> ir.Value:
    """Of a launch, for a product of `n` columns."""
    blocks = product([ceil_div(rows, kernel.block[0]), ceil_div(n, kernel.block[1])])
    blocks = product([blocks, index(split * kernel.parts)])
    if kernel.most_blocks:
        blocks = arith.MinUIOp(blocks, index(kernel.most_blocks)).result
    return blocks


def _launch_grids(
    low: Lowering,
    kernel: Any,
    rows: ir.Value,
    ns: list[ir.Value],
    split: int,
    arguments: list[ir.Value],
) -> None:
    """Launch `kernel` with the blocks of products of so many columns each, times `split`."""
    low.unit.kernels[kernel.name] = kernel
    grid = index(0)
    for n in ns:
        grid = arith.AddIOp(grid, _blocks(kernel, rows, n, split)).result
    low.launch(kernel.name, grid, arguments)


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
