"""A segment as a function of arrays: what its operations compute, in numpy or torch.

Only what stands between the products of a model is known here: loops over whole tensors, reshapes,
products of two activations. With torch it is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from abqc.compiler.calibration.dataflow import block_operations
from abqc.compiler.calibration.segments import SegmentModule
from abqc.dialects import abq
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import main_function
from abqc.passes.loops.constant_values import symbol_of

from .loops import Loops, reduced_value
from .scalars import as_type, dtype_of, scalar_function

Array = Any
Function = Callable[..., Any]
Weight = Callable[[str], Array]
# y [.., N] of a product, by its node, its input x [.., K], its weight's symbol, its bias or None.
Product = Callable[[str, Array, str, Array | None], Array]


class UnknownOperationError(Exception):
    """An operation that no function is known for; the message is its name."""

    def __init__(self, op: ir.Operation) -> None:
        super().__init__(op.name)


class Evaluator:
    """The function of a segment. `xp` is numpy or torch; `weight` gives constants by symbol.

    Raises UnknownOperationError.
    """

    def __init__(self, part: SegmentModule, xp: Any, weight: Weight, product: Product) -> None:
        self._xp, self._weight, self._product = xp, weight, product
        self._inputs = [spec.name for spec in part.inputs]
        self._outputs = [spec.name for spec in part.outputs]
        block = main_function(part.module.operation).regions[0].blocks[0]
        self._arguments = list(block.arguments)
        *operations, last = block_operations(part.module.operation)
        self._steps = list(self._decoded(operations))
        self._returned = list(last.operands)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, of inputs by name."""
        values: dict[ir.Value, Any] = {}
        for argument, name in zip(self._arguments, self._inputs, strict=True):
            values[argument] = feeds[name]
        for step in self._steps:
            step(values)
        returned = [values[value] for value in self._returned]
        return dict(zip(self._outputs, returned, strict=True))

    def _decoded(
        self, operations: Sequence[ir.Operation]
    ) -> Iterator[Callable[[dict[ir.Value, Any]], None]]:
        for op in operations:
            if op.name == "cf.assert" or (op.name == "linalg.generic" and not len(op.results)):
                continue  # checks, which have passed
            if op.name == "abq.weight" and _only_multiplied(op):
                continue  # products are given its symbol
            if len(op.results) != 1:
                raise UnknownOperationError(op)
            function = self._loops(op) if op.name == "linalg.generic" else self._function(op)
            yield _step(op, function)

    def _function(self, op: ir.Operation) -> Function:
        """The result as a function of the operands, and of all values known so far."""
        if op.name == "abq.weight":
            symbol = ir.StringAttr(op.attributes["sym"]).value
            return lambda values: self._weight(symbol)
        if op.name == "abq.matmul":
            return self._matmul(op)
        decode = _DECODERS.get(op.name)
        function = decode(op, self._xp) if decode is not None else scalar_function(op, self._xp)
        if function is None:
            raise UnknownOperationError(op)
        operands = list(op.operands)
        return lambda values: function(*(values[operand] for operand in operands))

    def _matmul(self, op: ir.Operation) -> Function:
        view = op.opview
        symbol = symbol_of(view.w)
        if symbol is None or view.w_scale is not None or view.x_scale is not None:
            raise UnknownOperationError(op)
        node, x, bias = ir.StringAttr(view.node).value, view.x, view.bias
        return lambda values: self._product(
            node, values[x], symbol, None if bias is None else values[bias]
        )

    def _loops(self, op: ir.Operation) -> Function:
        loops = Loops.of(op)
        if loops is None:
            raise UnknownOperationError(op)
        block = op.regions[0].blocks[0]
        *operations, last = [inner.operation for inner in block.operations]
        wanted = last.operands[0]
        if loops.reduction is not None:
            wanted = reduced_value(op)
            operations.pop()
        sizes: list[int] = []
        steps = []
        for inner in operations:
            if inner.name == "linalg.index":
                steps.append(_step(inner, _loop_number(inner, sizes, self._xp)))
            else:
                steps += self._decoded([inner])
        arguments, operands = list(block.arguments), list(op.operands)

        def run(values: dict[ir.Value, Any]) -> Array:
            def body(spread: list[Array], shape: list[int]) -> Any:
                sizes[:] = shape
                values.update(zip(arguments, spread, strict=True))
                for step in steps:
                    step(values)
                return values[wanted]

            return loops.run([values[operand] for operand in operands], body, self._xp)

        return run


def _only_multiplied(op: ir.Operation) -> bool:
    return all(
        use.owner.name == "abq.matmul" and use.operand_number == 1 for use in op.results[0].uses
    )


def _step(op: ir.Operation, function: Function) -> Callable[[dict[ir.Value, Any]], None]:
    result = op.results[0]

    def step(values: dict[ir.Value, Any]) -> None:
        values[result] = function(values)

    return step


def _loop_number(op: ir.Operation, sizes: list[int], xp: Any) -> Function:
    dim = ir.IntegerAttr(op.attributes["dim"]).value

    def number(values: dict[ir.Value, Any]) -> Array:
        shape = [1] * len(sizes)
        shape[dim] = sizes[dim]
        return xp.arange(sizes[dim]).reshape(shape)

    return number


def _constant(op: ir.Operation, xp: Any) -> Function | None:
    attribute = op.attributes["value"]
    if isinstance(attribute, ir.FloatAttr | ir.IntegerAttr | ir.BoolAttr):
        value = attribute.value
        return lambda: value
    if not isinstance(attribute, ir.DenseElementsAttr):
        return None
    dtype = dtype_of(ir.RankedTensorType(op.results[0].type).element_type, xp)
    array = np.array(attribute)
    return None if dtype is None else lambda: xp.asarray(array, dtype=dtype)


def _empty(op: ir.Operation, xp: Any) -> Function | None:
    type_ = ir.RankedTensorType(op.results[0].type)
    dtype = dtype_of(type_.element_type, xp)
    if dtype is None:
        return None
    return lambda *sizes: xp.broadcast_to(
        xp.zeros((), dtype=dtype), _filled_in(list(type_.shape), sizes)
    )


def _fill(op: ir.Operation, xp: Any) -> Function:
    return lambda value, into: xp.broadcast_to(as_type(value, into.dtype, xp), into.shape)


def _filled_in(static: Sequence[int], sizes: Sequence[Any]) -> tuple[int, ...]:
    """Sizes, of which those that are not static come in order."""
    given = iter(sizes)
    return tuple(int(next(given)) if size == abq.DYNAMIC else size for size in static)


def _extract_slice(op: ir.Operation, xp: Any) -> Function:
    names = ("static_offsets", "static_sizes", "static_strides")
    static = [list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in names]
    rank = len(static[0])
    kept = abq.shape(op.results[0])

    def extract(x: Array, *given: Any) -> Array:
        flat = _filled_in([number for numbers in static for number in numbers], given)
        begins, sizes, strides = flat[:rank], flat[rank : 2 * rank], flat[2 * rank :]
        found = x[
            tuple(
                slice(begin, begin + (size - 1) * stride + 1 if size else begin, stride)
                for begin, size, stride in zip(begins, sizes, strides, strict=True)
            )
        ]
        return found if len(kept) == rank else found.reshape(_dropped(sizes, kept))

    return extract


def _dropped(sizes: Sequence[int], kept: Sequence[int]) -> tuple[int, ...]:
    """`sizes` without as many ones as the result has axes less, the first ones that fit."""
    found = list(sizes)
    for at in reversed(range(len(sizes))):
        if len(found) > len(kept) and found[at] == 1:
            del found[at]
    return tuple(found)


def _expand_shape(op: ir.Operation, xp: Any) -> Function:
    static = list(ir.DenseI64ArrayAttr(op.attributes["static_output_shape"]))
    return lambda x, *sizes: x.reshape(_filled_in(static, sizes))


def _collapse_shape(op: ir.Operation, xp: Any) -> Function:
    groups = [
        [ir.IntegerAttr(axis).value for axis in ir.ArrayAttr(group)]
        for group in ir.ArrayAttr(op.attributes["reassociation"])
    ]
    return lambda x: x.reshape([prod(int(x.shape[axis]) for axis in group) for group in groups])


def _dim(op: ir.Operation, xp: Any) -> Function:
    return lambda x, axis: int(x.shape[axis])


def _cast(op: ir.Operation, xp: Any) -> Function:
    return lambda x: x


def _concat(op: ir.Operation, xp: Any) -> Function:
    axis = ir.IntegerAttr(op.attributes["dim"]).value
    return lambda *parts: xp.concatenate(parts, axis)


def _extract(op: ir.Operation, xp: Any) -> Function:
    return lambda x, *indices: x[tuple(indices)]


def _transpose(op: ir.Operation, xp: Any) -> Function:
    axes = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
    return lambda x, into: xp.moveaxis(x, tuple(axes), tuple(range(len(axes))))


def _broadcast(op: ir.Operation, xp: Any) -> Function:
    new = set(ir.DenseI64ArrayAttr(op.attributes["dimensions"]))

    def broadcast(x: Array, into: Array) -> Array:
        places = (None if axis in new else slice(None) for axis in range(len(into.shape)))
        return xp.broadcast_to(x[tuple(places)], into.shape)

    return broadcast


def _gather(op: ir.Operation, xp: Any) -> Function | None:
    if abq.code_format(op.operands[0]) is not None or len(op.operands) != 2:
        return None
    return lambda table, rows: table[rows]


def _batch_matmul(op: ir.Operation, xp: Any) -> Function | None:
    if abq.ROWS in op.attributes:
        return None
    transposed = bool(ir.IntegerAttr(op.opview.transposed).value)

    def product(a: Array, c: Array) -> Array:
        batch, rows, k = a.shape
        c = xp.moveaxis(c, 2, 1) if transposed else c
        shared = a.reshape(c.shape[0], -1, k)  # consecutive batches of `a` share one of `c`
        return (shared @ c).reshape(batch, rows, c.shape[2])

    return product


def _softmax(op: ir.Operation, xp: Any) -> Function:
    def softmax(x: Array) -> Array:
        powers = xp.exp(x - xp.amax(x, -1)[..., None])
        return powers / powers.sum(-1)[..., None]

    return softmax


_DECODERS: dict[str, Callable[[ir.Operation, Any], Function | None]] = {
    "arith.constant": _constant,
    "tensor.empty": _empty,
    "tensor.extract_slice": _extract_slice,
    "tensor.expand_shape": _expand_shape,
    "tensor.collapse_shape": _collapse_shape,
    "tensor.dim": _dim,
    "tensor.cast": _cast,
    "tensor.concat": _concat,
    "tensor.extract": _extract,
    "linalg.fill": _fill,
    "linalg.transpose": _transpose,
    "linalg.broadcast": _broadcast,
    "abq.gather": _gather,
    "abq.batch_matmul": _batch_matmul,
    "abq.softmax": _softmax,
}
