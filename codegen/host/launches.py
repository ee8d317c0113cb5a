"""Launches and checks of the host function become calls of the shim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...dialects.mlir import arith, func, ir, memref
from ...passes.infrastructure import defining_op, main_function, node_name, walk
from ...passes.kernels.launch import (
    APPEND,
    DIRECT_CONV,
    KERNEL,
    LOOPS,
    ROW_KERNELS,
    SEQUENCE_KERNEL,
    THREADS,
    WITH_NEXT,
    kernel_names,
    launched_kernel,
)
from ...passes.resolve_dims import index

_LOOPS = ("scf.for", "scf.while")
_VIEWS = ("memref.cast", "memref.collapse_shape", "memref.expand_shape")


@dataclass(frozen=True)
class Slots:
    """The buffer that launches pass their arguments in, its address as an integer, and the indices
    of its elements, from the first that a launch has."""

    buffer: ir.Value
    begin: ir.Value
    positions: Sequence[ir.Value]
    first: int = 0

    def behind(self, first: int) -> Slots:
        """Those from the slot `first` on."""
        return replace(self, positions=self.positions[first:], first=first)

    def address(self) -> ir.Value:
        """Of the first slot, at the insertion point."""
        if not self.first:
            return self.begin
        i64 = ir.IntegerType.get_signless(64)
        offset = arith.ConstantOp(i64, ir.IntegerAttr.get(i64, 8 * self.first)).result
        return arith.AddIOp(self.begin, offset).result


class Host:
    """Turns launches and checks into calls of the shim."""

    def __init__(self, module: ir.Module, kernels: Sequence[str]) -> None:
        self.module = module
        self.numbers = {name: number for number, name in enumerate(kernels)}
        self.main = main_function(module.operation)
        self.i32 = ir.IntegerType.get_signless(32)
        self.i64 = ir.IntegerType.get_signless(64)
        self.messages: dict[str, str] = {}

    def rewrite(self) -> None:
        self._add_context()
        launch = [self.i64, self.i32, self.i64, self.i64]
        self._declare("abqc_rt_launch", launch)
        self._declare("abqc_rt_launch_with_next", launch)
        self._declare("abqc_rt_launch_loops", [*launch, self.i64])
        self._declare("abqc_rt_site", [self.i64, self.i32, self.i64])
        self._declare("abqc_rt_check", [self.i64, self.i32, self.i64])
        self._declare("abqc_rt_poll", [self.i64])
        launches = launches_of(self.module)
        counts = [self._count(op) for op, _ in launches]
        firsts = _first_slots([op for op, _ in launches], counts)
        slots = self._slots(max(map(sum, zip(firsts, counts, strict=True)), default=1))
        for number, (first, (op, name)) in enumerate(zip(firsts, launches, strict=True)):
            with ir.InsertionPoint(op), op.location:
                self._site(op, name, number)
                self._launch(op, name, slots.behind(first))
            op.erase()
        for op in walk(self.main):
            if op.name in _LOOPS:
                self._poll(op)
        self._give_context()
        for op in walk(self.main, "cf.assert"):
            with ir.InsertionPoint(op), op.location:
                self._check(op)
            op.erase()
        for op in list(self.module.body.operations):
            if KERNEL in op.operation.attributes:
                op.operation.erase()

    def _add_context(self) -> None:
        """The context (a pointer, as an integer) becomes main's last argument."""
        block = self.main.regions[0].blocks[0]
        self.context = block.add_argument(self.i64, ir.Location.unknown())
        type_ = ir.TypeAttr(self.main.attributes["function_type"]).value
        self.main.attributes["function_type"] = ir.TypeAttr.get(
            ir.FunctionType.get([*type_.inputs, self.i64], list(type_.results))
        )
        for name in ("arg_attrs", "res_attrs"):
            if name in self.main.attributes:
                del self.main.attributes[name]

    def _declare(self, name: str, types: list[ir.Type]) -> None:
        with ir.InsertionPoint.at_block_begin(self.module.body):
            func.FuncOp(name, ir.FunctionType.get(types, []), visibility="private")

    def _count(self, op: ir.Operation) -> int:
        return sum(
            3 + 2 * ir.MemRefType(o.type).rank if isinstance(o.type, ir.MemRefType) else 1
            for o in op.operands
        )

    def _slots(self, count: int) -> Slots:
        """Made once for all launches, which keeps the function short."""
        with ir.InsertionPoint.at_block_begin(self.main.regions[0].blocks[0]):
            buffer = memref.AllocaOp(ir.MemRefType.get([count], self.i64), [], []).result
            address = self.integer(memref.ExtractAlignedPointerAsIndexOp(buffer).result)
            return Slots(buffer, address, [index(position) for position in range(count)])

    def _site(self, op: ir.Operation, name: str, number: int) -> None:
        """Says which launch comes, for a run that is profiled."""
        if name.startswith(SEQUENCE_KERNEL):
            rows = index(0)
        elif name.startswith(DIRECT_CONV):
            rows = op.operands[-1]
        else:
            rows = op.operands[-2] if _is_product(op, name) else index(0)
        self._call("abqc_rt_site", [self.context, self.constant(number), self.integer(rows)])

    def _launch(self, op: ir.Operation, name: str, slots: Slots) -> None:
        arguments = list(op.operands)[1:]
        operands = self.launch_operands(op, name, slots)
        if WITH_NEXT in op.attributes:
            self._call("abqc_rt_launch_with_next", operands)
        elif name.startswith(LOOPS) or name in ROW_KERNELS:
            work = arith.MulIOp(op.operands[0], arguments[-1]).result
            self._call("abqc_rt_launch_loops", [*operands, self.integer(work)])
        else:
            self._call("abqc_rt_launch", operands)

    def launch_operands(self, op: ir.Operation, name: str, slots: Slots) -> list[ir.Value]:
        """Stores the arguments; context, kernel, grid and the address of the arguments."""
        grid, *arguments = op.operands
        by_hand = not name.startswith((LOOPS, SEQUENCE_KERNEL))
        values = [slot for argument in arguments for slot in self._expand(argument, by_hand)]
        for position, value in enumerate(values):
            if value is not None:
                memref.StoreOp(value, slots.buffer, [slots.positions[position]])
        number = self.constant(self.numbers[name])
        return [self.context, number, self.integer(grid), slots.address()]

    def constant(self, value: int) -> ir.Value:
        return arith.ConstantOp(self.i32, ir.IntegerAttr.get(self.i32, value)).result

    def _expand(self, value: ir.Value, pointer_only: bool) -> list[ir.Value | None]:
        """The 8-byte slots of one argument, as the LLVM dialect expands it.

        None for slots that the kernel does not read: the allocated pointer, what its type fixes,
        and all but the data of the flat buffers that kernels written by hand take.
        """
        type_ = value.type
        if not isinstance(type_, ir.MemRefType):
            if isinstance(type_, ir.FloatType):
                bits = ir.IntegerType.get_signless(type_.width)
                return [self.integer(arith.BitcastOp(bits, value).result)]
            return [self.integer(value)]
        rank = ir.MemRefType(type_).rank
        pointer = self.integer(memref.ExtractAlignedPointerAsIndexOp(value).result)
        slots: list[ir.Value | None] = [None, pointer, None, *[None] * (2 * rank)]
        if pointer_only:
            return slots
        strides, offset = ir.MemRefType(type_).get_strides_and_offset()
        dynamic = ir.ShapedType.get_dynamic_stride_or_offset()
        metadata = memref.ExtractStridedMetadataOp(value).operation.results
        if offset == dynamic:
            slots[2] = self.integer(metadata[1])
        for i, (size, stride) in enumerate(zip(type_.shape, strides, strict=True)):
            if size == ir.ShapedType.get_dynamic_size():
                slots[3 + i] = self.integer(metadata[2 + i])
            if stride == dynamic:
                slots[3 + rank + i] = self.integer(metadata[2 + rank + i])
        return slots

    def integer(self, value: ir.Value) -> ir.Value:
        if isinstance(value.type, ir.IndexType):
            return arith.IndexCastUIOp(self.i64, value).result
        if ir.IntegerType(value.type).width == 64:
            return value
        return arith.ExtUIOp(self.i64, value).result

    def _give_context(self) -> None:
        """Calls and declarations of appends and of `THREADS` get the context as their first
        argument."""
        for op in walk(self.main, "func.call"):
            callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
            if callee.startswith((APPEND, THREADS)):
                with ir.InsertionPoint(op), op.location:
                    new = func.CallOp(
                        [r.type for r in op.results],
                        op.attributes["callee"],
                        [self.context, *op.operands],
                    )
                op.results[0].replace_all_uses_with(new.results[0])
                op.erase()
        for op in self.module.body.operations:
            function = op.operation
            if function.name == "func.func" and symbol(function).startswith((APPEND, THREADS)):
                type_ = ir.TypeAttr(function.attributes["function_type"]).value
                function.attributes["function_type"] = ir.TypeAttr.get(
                    ir.FunctionType.get([self.i64, *type_.inputs], list(type_.results))
                )

    def _poll(self, loop: ir.Operation) -> None:
        """Every iteration asks whether the run was interrupted."""
        body = loop.regions[len(loop.regions) - 1].blocks[0]
        with ir.InsertionPoint.at_block_begin(body), loop.location:
            self._call("abqc_rt_poll", [self.context])

    def _check(self, op: ir.Operation) -> None:
        condition = arith.ExtUIOp(self.i32, op.operands[0]).result
        message = memref.GetGlobalOp(
            *self._message(ir.StringAttr(op.attributes["msg"]).value)
        ).result
        address = self.integer(memref.ExtractAlignedPointerAsIndexOp(message).result)
        self._call("abqc_rt_check", [self.context, condition, address])

    def _message(self, text: str) -> tuple[ir.Type, str]:
        data = text.encode() + b"\0"
        type_ = ir.MemRefType.get([len(data)], ir.IntegerType.get_signless(8))
        if text not in self.messages:
            name = self.messages[text] = f"message.{len(self.messages)}"
            tensor_type = ir.RankedTensorType.get([len(data)], ir.IntegerType.get_signless(8))
            with ir.InsertionPoint.at_block_begin(self.module.body):
                memref.GlobalOp(
                    ir.StringAttr.get(name),
                    ir.TypeAttr.get(type_),
                    sym_visibility=ir.StringAttr.get("private"),
                    initial_value=ir.DenseElementsAttr.get(memoryview(data), type=tensor_type),
                    constant=True,
                )
        return type_, self.messages[text]

    def _call(self, name: str, operands: list[ir.Value]) -> None:
        func.CallOp([], ir.FlatSymbolRefAttr.get(name), operands)


def _first_slots(launches: Sequence[ir.Operation], counts: Sequence[int]) -> list[int]:
    """The first slot of each launch: those that run at the same time have their own."""
    firsts, first = [], 0
    for op, count in zip(launches, counts, strict=True):
        firsts.append(first)
        first = first + count if WITH_NEXT in op.attributes else 0
    return firsts


def launches_of(module: ir.Module) -> list[tuple[ir.Operation, str]]:
    """The launches of @main and their kernels, in the order that numbers them."""
    names = kernel_names(module.operation)
    calls = walk(main_function(module.operation), "func.call")
    launches = [(op, launched_kernel(op, names)) for op in calls]
    return [(op, name) for op, name in launches if name is not None]


def launch_table(
    module: ir.Module, weights: Mapping[str, str], kinds: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What the manifest says of each launch: ONNX node, kernel, the weights that it is given (their
    symbols in the store; `weights` has them by object symbol) and how many bytes these have.

    None for a launch that reads some rows of a table: `kinds` are those of nodes.
    """
    table = []
    for op, name in launches_of(module):
        node, given = node_name(op) or "", _weights(op, weights)
        some = given and kinds.get(node) == "gather"
        size = None if some else sum(given.values())
        symbols = [weights[weight] for weight in given]
        table.append({"node": node, "kernel": name, "weights": symbols, "bytes": size})
    return table


def _weights(op: ir.Operation, known: Mapping[str, str]) -> dict[str, int]:
    """The weights among a launch's arguments, by object symbol, and their bytes."""
    found: dict[str, int] = {}
    for operand in op.operands:
        owner = defining_op(operand)
        while owner is not None and owner.name in _VIEWS:
            owner = defining_op(owner.operands[0])
        if owner is None or owner.name != "memref.get_global":
            continue
        name = ir.FlatSymbolRefAttr(owner.attributes["name"]).value
        if name in known:
            type_ = ir.MemRefType(owner.results[0].type)
            found[name] = math.prod(type_.shape) * type_.element_type.width // 8
    return found


def _is_product(op: ir.Operation, name: str) -> bool:
    """Whether a launch has the arguments of a product's kernel: activations, weight, bias, inputs
    of its epilogue and result, sizes of images if it convolves, m and n (docs/architecture.md)."""
    _, *operands = op.operands
    flat = [isinstance(o.type, ir.MemRefType) and ir.MemRefType(o.type).rank == 1 for o in operands]
    buffers = flat.index(False) if False in flat else len(flat)
    sizes = [isinstance(o.type, ir.IndexType) for o in operands[buffers:]]
    return not name.startswith(LOOPS) and buffers >= 4 and len(sizes) >= 2 and all(sizes)


def symbol(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["sym_name"]).value
