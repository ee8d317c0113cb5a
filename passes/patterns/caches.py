"""Caches by the structure of the graph: an input to which rows are appended that come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir, tensor

from ..infrastructure import defining_op, main_function, users, walk


@dataclass(frozen=True)
class Cache:
    """Input `input` and output `position` of the host function; `op` makes the one of the other.

    It is `tensor.concat(input, rows)` or `abq.update(input, rows, ..)`.
    """

    op: ir.Operation
    input: int
    position: int

    @property
    def rows(self) -> ir.Value:
        return self.op.operands[1]

    @property
    def axis(self) -> int:
        """Along which it grows."""
        name = "dim" if self.op.name == "tensor.concat" else "axis"
        return ir.IntegerAttr(self.op.attributes[name]).value

    @property
    def heads_axis(self) -> int:
        """Of [batch, heads, rows, columns], or with rows before heads."""
        return 1 if self.axis == 2 else 2


def caches_of(module: ir.Operation) -> Iterator[Cache]:
    """All caches, in the order of the outputs."""
    main = main_function(module)
    inputs = {argument: i for i, argument in enumerate(main.regions[0].blocks[0].arguments)}
    (ret,) = walk(main, "func.return")
    for position, value in enumerate(ret.operands):
        made = defining_op(value)
        if made is not None and appends_to_input(made, inputs):
            yield Cache(made, inputs[made.operands[0]], position)


def appends_to_input(op: ir.Operation, inputs: Mapping[ir.Value, int]) -> bool:
    """concat(input, new) or an update where the input is used for nothing else but its sizes."""
    appends = op.name == "tensor.concat" and len(op.operands) == 2
    if not (appends or op.name == "abq.update") or op.operands[0] not in inputs:
        return False
    others = [u.operation for u in users(op.operands[0]) if u.operation != op]
    returned = [u for u in users(op.results[0]) if u.operation.name == "func.return"]
    return all(u.name == "tensor.dim" for u in others) and len(returned) == 1


RESHAPES = ("tensor.collapse_shape", "tensor.expand_shape", "tensor.extract_slice")


def reshaped(step: ir.Operation, value: ir.Value) -> ir.Value:
    """The same as `step`, one of RESHAPES, does, of a tensor that may have another element type and
    another length of its last axis, which `step` leaves alone."""
    old = ir.RankedTensorType(step.results[0].type)
    shape = [*list(old.shape)[:-1], abq.shape(value)[-1]]
    type_ = ir.RankedTensorType.get(shape, abq.element(value))
    if step.name == "tensor.collapse_shape":
        return tensor.CollapseShapeOp(type_, value, step.attributes["reassociation"]).result
    operands = list(step.operands)[1:]
    if step.name == "tensor.expand_shape":
        axes = step.attributes["reassociation"]
        return tensor.ExpandShapeOp(type_, value, axes, operands, shape).result
    static = [
        list(ir.DenseI64ArrayAttr(step.attributes[f"static_{name}"]))
        for name in ("offsets", "sizes", "strides")
    ]
    given = [[operands.pop(0) for each in of if each == abq.DYNAMIC] for of in static]
    static[1][-1] = shape[-1]
    return tensor.ExtractSliceOp(type_, value, *given, *static).result
