"""Products of one x, one after another in every grid index, each followed by its epilogue.

    fused product  (i, x, (w, bias, inputs: memref<?xf32>..., y: memref<?xf32>) of each stage,
                    m, n: index); grid as the kernels of the products, which have equal blocks in
                    one order

A stage is the kernel of its product, called as it is, then the epilogue over what that has stored,
which is in the nearest caches by then. So every strategy has epilogues, and results are those of
the loops that they replace, to the bit. An input of an epilogue that is the result of an earlier
stage is no argument: it lies in that one's y, and this grid index has written what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.epilogue import apply_epilogue
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.epilogue import Epilogue, Stage, name_with
from abqc.dialects.mlir import func, ir

from .float_products.tile import broadcast, cover
from .grid_block import grid_block

VECTORS = 4  # of a row that are computed at once: the functions in epilogues are long chains


def fused_product_kernel(stages: Sequence[Stage]) -> Kernel | None:
    """The kernel of these stages; None where their blocks differ, or the order of these."""
    if len({(stage.kernel.block, stage.kernel.by_columns) for stage in stages}) > 1:
        return None
    first = stages[0].kernel
    name = "_then_".join(map(_name, stages))
    uses = frozenset[str]().union(*(stage.kernel.uses for stage in stages))
    emit = partial(_emit, name, tuple(stages))
    return Kernel(name, first.block, emit, uses=uses, by_columns=first.by_columns)


def _name(stage: Stage) -> str:
    name = name_with(stage.kernel.name, stage.epilogue)
    earlier = [f"{i}y{source}" for i, source in enumerate(stage.sources) if source is not None]
    return "_".join([name, *earlier])


def _emit(name: str, stages: tuple[Stage, ...], module: ir.Module, isa: Isa) -> None:
    bodies = {kernel.name: _body(kernel, module, isa) for kernel in _kernels(stages)}
    inputs_of = {
        kernel: ir.TypeAttr(body.attributes["function_type"]).value.inputs
        for kernel, body in bodies.items()
    }
    types: list[Any] = [inputs_of[stages[0].kernel.name][1]]
    counts = [sum(source is None for source in stage.sources) for stage in stages]
    for stage, count in zip(stages, counts, strict=True):
        types += [inputs_of[stage.kernel.name][2], *[buffer("f32")] * (2 + count)]
    with function(module, isa, name, [*types, INDEX, INDEX]) as (b, i, x, *rest, m, n):
        block = _Block.of(b, i, stages[0].kernel, m, n)
        results: list[Value] = []
        for stage, count in zip(stages, counts, strict=True):
            (w, bias, *given, y), rest = rest[: 3 + count], rest[3 + count :]
            callee = bodies[stage.kernel.name].attributes["sym_name"]
            arguments = [i, x, w, bias, y, m, n]
            func.CallOp(
                [],
                ir.FlatSymbolRefAttr.get(ir.StringAttr(callee).value),
                [argument.ir for argument in arguments],
            )
            if stage.epilogue is not None:
                others = iter(given)
                inputs = [next(others) if s is None else results[s] for s in stage.sources]
                block.finish(stage.epilogue, inputs, y)
            results.append(y)


def _kernels(stages: Sequence[Stage]) -> list[Kernel]:
    """Each kernel once."""
    return list({stage.kernel.name: stage.kernel for stage in stages}.values())


def _body(kernel: Kernel, module: ir.Module, isa: Isa) -> ir.Operation:
    """The function of a kernel, in the module under a name of its own: there it is no entry."""
    name = f"{kernel.name}.body"
    table = ir.SymbolTable(module.operation)
    if name in table:
        return table[name].operation
    with module.context, ir.Location.unknown():
        alone = ir.Module.create()
        kernel.emit(alone, isa)
        body = ir.SymbolTable(alone.operation)[kernel.name].operation.clone()
        body.attributes["sym_name"] = ir.StringAttr.get(name)
        module.body.append(body)
    return ir.SymbolTable(module.operation)[name].operation


@dataclass(frozen=True)
class _Block:
    """The rows and columns of a grid index."""

    b: Builder
    rows: tuple[Value, Value]
    columns: tuple[Value, Value]
    width: int  # of a block that is not at the end
    n: Value

    @staticmethod
    def of(b: Builder, i: Value, kernel: Kernel, m: Value, n: Value) -> _Block:
        rows, columns = grid_block(b, kernel, i, m, n)
        return _Block(b, rows, columns, kernel.block[1], n)

    def finish(self, epilogue: Epilogue, inputs: Sequence[Value], y: Value) -> None:
        """Replace the elements of y by what the epilogue makes of them."""
        b, lanes = self.b, self.b.isa.lanes(32)
        one = [
            broadcast(b, source, 0, lanes) if read == "one" else None
            for source, read in zip(inputs, epilogue.reads, strict=True)
        ]
        with b.loop(*self.rows) as rows:
            steady = [
                broadcast(b, source, rows.i, lanes) if read == "sample" else known
                for source, read, known in zip(inputs, epilogue.reads, one, strict=True)
            ]

            def tile(column: Value, masks: list[Value | None], row: Value = rows.i) -> None:
                at, results = row * self.n + column, []
                for v, mask in enumerate(masks):
                    others = [
                        known
                        if known is not None
                        else b.load(
                            source, (column if read == "channel" else at) + v * lanes, lanes, mask
                        )
                        for source, read, known in zip(inputs, epilogue.reads, steady, strict=True)
                    ]
                    value = b.load(y, at + v * lanes, lanes, mask)
                    results.append(apply_epilogue(epilogue, value, others))
                for v, (result, mask) in enumerate(zip(results, masks, strict=True)):
                    b.store(result, y, at + v * lanes, mask)

            first, last = self.columns
            whole = last - first == self.width
            at_once = lanes * _at_once(self.width // lanes)
            with b.when(whole), b.loop(first, last, at_once) as columns:
                tile(columns.i, [None] * (at_once // lanes))
            with b.when(whole ^ 1):
                cover(b, first, last, lanes, lambda column, mask: tile(column, [mask]))


def _at_once(vectors: int) -> int:
    """Of the vectors that a whole row of a block has, how many are computed at once: all groups are
    full ones."""
    return max(count for count in range(1, VECTORS + 1) if vectors % count == 0)
