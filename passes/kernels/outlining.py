"""What all passes share that make grid functions out of `linalg.generic` on buffers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from abqc.dialects.mlir import func, ir, linalg

from ..infrastructure import Unit, constant_index, defining_op, walk
from .launch import LOOPS
from .loop_nest import Nest


def reduces(op: ir.Operation) -> bool:
    return "reduction" in linalg.iterators(op)


def copy_to_generic(op: ir.Operation) -> None:
    source, target = op.operands
    rank = ir.MemRefType(target.type).rank
    identity = ir.AffineMapAttr.get(ir.AffineMap.get_identity(rank))
    element = ir.MemRefType(target.type).element_type
    with ir.InsertionPoint(op), op.location:
        copy = linalg.GenericOp(
            [],
            [source],
            [target],
            ir.ArrayAttr.get([identity] * 2),
            linalg.iterator_types(["parallel"] * rank),
        )
        block = copy.operation.regions[0].blocks.append(
            element, element, arg_locs=[op.location] * 2
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
    op.erase()


def inline_scalar_inputs(op: ir.Operation) -> None:
    """Inputs that are scalars (a fill's value) are used in the body as they are."""
    for operand, argument in zip(op.operands, op.regions[0].blocks[0].arguments, strict=True):
        if not isinstance(operand.type, ir.MemRefType):
            argument.replace_all_uses_with(operand)


def outline_all(
    module: ir.Operation, unit: Unit, outline: Callable[[ir.Operation, ir.Operation, Library], None]
) -> None:
    """Call `outline(module, op, library)` for every linalg.generic and memref.copy."""
    library = library_of(unit)
    for op in walk(module, "memref.copy"):
        copy_to_generic(op)
    for op in walk(module, "linalg.generic"):
        inline_scalar_inputs(op)
    for op in filter(reduces, walk(module, "linalg.generic")):
        outline(module, op, library)
    # What is left are no reductions, nor fills that a reduction has taken over.
    for op in walk(module, "linalg.generic"):
        outline(module, op, library)


def library_of(unit: Unit) -> Library:
    """A library over the unit's module of outlined kernels, which is made if need be."""
    if unit.outlined is None:
        unit.outlined = ir.Module.create()
    return Library(unit)


def arguments_of(nest: Nest, extents: list[ir.Value]) -> list[ir.Value]:
    """What a nest's kernel takes: buffers, scalars that the body uses, sizes not known before."""
    captured = captured_values(nest.op)
    buffers = nest.operands + [v for v in captured if isinstance(v.type, ir.MemRefType)]
    scalars = [v for v in captured if not isinstance(v.type, ir.MemRefType)]
    dynamic = [s for s in extents if constant_index(s) is None]
    return unique([*buffers, *scalars, *dynamic])


class Library:
    """The outlined kernels, found again by their text."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.by_text: dict[str, str] = {}
        self.together: list[ir.Operation] = []  # loops that wait for the next one

    def adopt(self, kernel: func.FuncOp) -> str:
        """Keep the kernel, or erase it if an equal one exists; its name either way."""
        text = kernel.operation.get_asm(use_local_scope=True)
        known = self.by_text.get(text)
        if known is not None:
            kernel.operation.erase()
            return known
        name = f"{LOOPS}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if name in self.unit.kernels:  # another library of the same unit has it
            kernel.operation.erase()
            return name
        kernel.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        self.by_text[text] = name
        self.unit.kernels[name] = None  # its body is in unit.outlined
        return name


def unique(values: list[ir.Value]) -> list[ir.Value]:
    return list(dict.fromkeys(values))


def captured_values(op: ir.Operation) -> list[ir.Value]:
    """Values from outside that the body uses, constants excepted (they are cloned)."""
    inside: set[ir.Value] = set()
    captured: list[ir.Value] = []
    for block in op.regions[0].blocks:
        inside.update(block.arguments)
    for inner in walk(op):
        if inner == op:
            continue
        for region in inner.regions:
            for block in region.blocks:
                inside.update(block.arguments)
        for operand in inner.operands:
            owner = defining_op(operand)
            if operand not in inside and not (owner is not None and owner.name == "arith.constant"):
                captured.append(operand)
        inside.update(inner.results)
    return [v for v in unique(captured) if v not in inside]
