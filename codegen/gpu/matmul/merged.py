"""Products of the same rows by one launch: a grid that has the blocks of each, one after another.

    merged matmul  (those of the matmul kernel; (w, bias, y, n) of each further product)
    merged stream  (those of a kernel whose blocks share tiles; (w, bias, y, n, workspace, number of
                    the first counter) of each further product)
    merged split   (those of the split kernel; (w, bias, workspace, n) of each further product)
    merged reduce  (those of the reduction; (workspace, w, bias, y, n) of each further product)
                   grid: the sum of the products' grids

The kernel is made from that of one product, whatever its strategy: its block number and the
operands that are a product's own become those of the product that a block belongs to. So results
are the same to the bit, weights stay what they are, and nothing is concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

from abqc.codegen.builder import Value, constant
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import arith, ir

from ..arch import GpuArch

MAX_PARTS = 8  # a block compares its number with those of all parts


@dataclass(frozen=True)
class Operands:
    """Where a kernel's arguments stand, behind the grid index: a product's own, y, m and n."""

    own: tuple[int, ...]
    y: int
    m: int
    n: int


MATMUL = Operands((1, 2, 3, 5), 3, 4, 5)  # x, w, bias, y, m, n
STREAM = Operands((1, 2, 3, 5, 6, 7), 3, 4, 5)  # the same, workspace, first counter, counters
REDUCE = Operands((0, 2, 3, 4, 6), 4, 5, 6)  # workspace, x, w, bias, y, m, n


@dataclass(frozen=True)
class Merged:
    """What a block of a merged kernel knows: its number in the grid of its product, and the
    operands of all products, in the order of `Operands.own`."""

    inside: Value
    own: list[list[ir.Value]]


def merged_matmul(kernel: Kernel, parts: int, split: int = 1) -> Kernel:
    """The matmul, or one of `split` parts of K, of `parts` products."""
    return _merged(kernel, parts, STREAM if kernel.stream else MATMUL, split * kernel.parts)


def merged_reduce(kernel: Kernel, parts: int) -> Kernel:
    """The reduction of `parts` products whose K was split."""
    return _merged(kernel, parts, REDUCE, 1)


def _merged(kernel: Kernel, parts: int, operands: Operands, split: int) -> Kernel:
    assert 1 < parts <= MAX_PARTS
    name = f"{kernel.name}_x{parts}"
    emit = partial(_emit, name, kernel, parts, operands, split)
    return Kernel(name, kernel.block, emit, most_blocks=kernel.most_blocks, stream=kernel.stream)


def _emit(
    name: str,
    kernel: Kernel,
    parts: int,
    operands: Operands,
    split: int,
    module: Any,
    arch: GpuArch,
) -> None:
    with module.context, ir.Location.name(name):
        apart = ir.Module.create()
        kernel.emit(apart, arch)
        function = ir.SymbolTable(apart.operation)[kernel.name]
        merge(function, kernel, parts, operands, split)
        move_into(module, apart, function, name)


def move_into(module: Any, apart: ir.Module, function: Any, name: str) -> None:
    """Give `function` of the module `apart` this name, and `module` what it does not have yet."""
    function.attributes["sym_name"] = ir.StringAttr.get(name)
    known = ir.SymbolTable(module.operation)
    for op in list(apart.body.operations):
        if ir.StringAttr(op.attributes["sym_name"]).value not in known:
            module.body.append(op)


def merge(function: Any, kernel: Kernel, parts: int, operands: Operands, split: int) -> Merged:
    """Give `function` the operands of further products, and each block those of its product."""
    entry = function.regions[0].blocks[0]
    index, *arguments = list(entry.arguments)
    own = [[arguments[at] for at in operands.own]]
    types = [argument.type for argument in own[0]]
    for _ in range(parts - 1):
        own.append([entry.add_argument(type_, function.location) for type_ in types])
    every = [argument.type for argument in entry.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(every, []))
    attributes = list(function.arg_attrs)
    more = [attributes[1 + at] for at in operands.own] * (parts - 1)
    function.arg_attrs = ir.ArrayAttr.get([*attributes, *more])

    first = entry.operations[0]
    block_m, block_n = kernel.block
    m, n = Value(arguments[operands.m]), operands.own.index(operands.n)
    with ir.InsertionPoint(first):
        block = Value(arith.index_cast(m.type, index))
        rows = _ceil_div(m, block_m) * split
        begin, inside, chosen = 0 * m, block, own[0]
        for before, mine in pairwise(own):
            begin = begin + _blocks(kernel, rows * _ceil_div(Value(before[n]), block_n))
            there = (block >= begin).ir
            inside = Value(arith.select(there, (block - begin).ir, inside.ir))
            chosen = [arith.select(there, a, b) for a, b in zip(mine, chosen, strict=True)]
        number = arith.index_cast(index.type, inside.ir)
    made = list(takewhile(lambda op: op != first, entry.operations))
    for old, new in zip([index, *own[0]], [number, *chosen], strict=True):
        old.replace_all_uses_except(new, [op.operation for op in made])
    return Merged(inside, own)


def _blocks(kernel: Kernel, blocks: Value) -> Value:
    """Those that a product has of so many."""
    if not kernel.most_blocks:
        return blocks
    most = constant(kernel.most_blocks, blocks.type)
    return Value(arith.minui(blocks.ir, most.ir))


def _ceil_div(value: Value, by: int) -> Value:
    return value if by == 1 else (value + (by - 1)) // by
