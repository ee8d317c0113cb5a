"""What is still linalg becomes grid functions: `linalg.generic` on buffers -> kernel + launch.

`loop_nest` decides which loops become the grid, `loop_body` emits the rest. Kernels that are equal
up to their names are one kernel: thirty layers share it.
"""

from __future__ import annotations

import hashlib

from abqc.dialects.mlir import func, ir, linalg

from .infrastructure import Unit, constant_index, defining_op, register, walk
from .launch import LOOPS, launch
from .loop_body import Body
from .loop_nest import Nest, analyse, grid_size, grid_work, loop_sizes


@register
def outline_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a grid function of its own."""
    if unit.outlined is None:
        unit.outlined = ir.Module.create()
    library = _Library(unit)
    for op in walk(module, "memref.copy"):
        _copy_to_generic(op)
    for op in walk(module, "linalg.generic"):
        _inline_scalar_inputs(op)
    for op in filter(_reduces, walk(module, "linalg.generic")):
        _outline(module, op, library)
    # What is left are no reductions, nor fills that a reduction has taken over.
    for op in walk(module, "linalg.generic"):
        _outline(module, op, library)


def _reduces(op: ir.Operation) -> bool:
    return any("reduction" in str(kind) for kind in ir.ArrayAttr(op.attributes["iterator_types"]))


def _copy_to_generic(op: ir.Operation) -> None:
    source, target = op.operands
    rank = ir.MemRefType(target.type).rank
    identity = ir.AffineMapAttr.get(ir.AffineMap.get_identity(rank))
    kind = ir.Attribute.parse("#linalg.iterator_type<parallel>")
    element = ir.MemRefType(target.type).element_type
    with ir.InsertionPoint(op), op.location:
        copy = linalg.GenericOp(
            [],
            [source],
            [target],
            ir.ArrayAttr.get([identity] * 2),
            ir.ArrayAttr.get([kind] * rank),
        )
        block = copy.operation.regions[0].blocks.append(
            element, element, arg_locs=[op.location] * 2
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
    op.erase()


def _inline_scalar_inputs(op: ir.Operation) -> None:
    """Inputs that are scalars (a fill's value) are used in the body as they are."""
    for operand, argument in zip(op.operands, op.regions[0].blocks[0].arguments, strict=True):
        if not isinstance(operand.type, ir.MemRefType):
            argument.replace_all_uses_with(operand)


class _Library:
    """The outlined kernels, found again by their text."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.by_text: dict[str, str] = {}

    def adopt(self, kernel: func.FuncOp) -> str:
        """Keep the kernel, or erase it if an equal one exists; its name either way."""
        text = kernel.operation.get_asm(use_local_scope=True)
        known = self.by_text.get(text)
        if known is not None:
            kernel.operation.erase()
            return known
        name = f"{LOOPS}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        kernel.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        self.by_text[text] = name
        self.unit.kernels[name] = None  # its body is in unit.outlined
        return name


def _outline(module: ir.Operation, op: ir.Operation, library: _Library) -> None:
    nest = analyse(op)
    captured = _captured(op)
    buffers = _unique(nest.operands + [v for v in captured if isinstance(v.type, ir.MemRefType)])
    scalars = [v for v in captured if not isinstance(v.type, ir.MemRefType)]
    with ir.InsertionPoint(op), op.location:
        sizes = loop_sizes(nest)
        grid = grid_size(nest, sizes)
        extents = [sizes[d] for d in range(len(nest.kinds))]
        dynamic = [s for s in extents if constant_index(s) is None]
        arguments = _unique([*buffers, *scalars, *dynamic])
        kernel = _emit(nest, arguments, extents, library)
        name = library.adopt(kernel)
        launch(module, name, grid, [*arguments, grid_work(nest, sizes)])
    if nest.fill is not None:
        nest.fill.erase()
    op.erase()


def _unique(values: list[ir.Value]) -> list[ir.Value]:
    return list(dict.fromkeys(values))


def _captured(op: ir.Operation) -> list[ir.Value]:
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
    return [v for v in _unique(captured) if v not in inside]


def _emit(
    nest: Nest, arguments: list[ir.Value], extents: list[ir.Value], library: _Library
) -> func.FuncOp:
    index_type = ir.IndexType.get()
    types = [index_type, *(a.type for a in arguments), index_type]
    body = library.unit.outlined.body
    with ir.InsertionPoint(body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        entry = kernel.add_entry_block()
        inside = dict(zip(arguments, list(entry.arguments)[1:-1], strict=True))
        with ir.InsertionPoint(entry):
            Body(nest, inside, entry.arguments[0], extents).emit()
            func.ReturnOp([])
    return kernel
