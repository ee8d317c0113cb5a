"""How large the channels of a value are, by the weights that make them: energies of the last axes.

    y = W x           sum over k of W[n, k]^2 g[k]^2, where norms have gains g
    a + b, a * b      sums, products
    -a, cos a, ...    as they are, 1

Inputs of products count as alike, and so do the sines and cosines of rotary embeddings: both
channels of a pair then get the sum of their energies. So no data are needed. ("Accurate Block
Quantization in LLMs with Outliers", Trukhanov and Soloveychik 2024, sorts by the weights' norms.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import ir
from numpy.typing import NDArray

from ..infrastructure import defining_op
from ..loops.constant_values import is_constant, read
from ..loops.generics import dims, expression, groups, inputs, is_elementwise, maps

# An axis of a value; one whose length is not static, or along which nothing differs, has length 1.
Energies = NDArray[np.float64]


def channel_energies(value: ir.Value, store: Any) -> Energies:
    """The expected squares of a value's elements, up to a factor, with an axis for each of its."""
    return _Energies(store).of(value)


class _Energies:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.known: dict[ir.Value, Energies] = {}

    def of(self, value: ir.Value) -> Energies:
        if value not in self.known:
            self.known[value] = self._made(value)
        return self.known[value]

    def _made(self, value: ir.Value) -> Energies:
        if is_constant(value):
            return np.asarray(read(value, self.store), np.float64) ** 2
        op = defining_op(value)
        rule = _RULES.get(op.name) if op is not None else None
        if op is not None and rule is not None:
            return rule(self, op)
        if op is not None and is_elementwise(op):
            return self._loop(op)
        return _alike(value)

    def _loop(self, op: ir.Operation) -> Energies:
        """An elementwise loop, whose output is read in order."""
        rank = len(abq.shape(op.results[0]))
        read_by = []
        for value, map_ in zip(inputs(op), maps(op), strict=False):
            loops = dims(map_)
            if loops is None or len(set(loops)) < len(loops):
                return _alike(op.results[0])
            energies = self.of(value)
            axes = [i for i, result in enumerate(map_.results) if _is_loop(result)]
            energies = energies.mean(axis=tuple(i for i in range(energies.ndim) if i not in axes))
            order = np.argsort(loops)
            shape = [1] * rank
            for axis in order:
                shape[loops[axis]] = energies.shape[axis]
            read_by.append(energies.transpose(order).reshape(shape))
        result = _of_tree(expression(op), read_by)
        return result if isinstance(result, np.ndarray) else np.full([1] * rank, result)

    def matmul(self, op: ir.Operation) -> Energies:
        view = op.opview
        rank = len(abq.shape(view.result))
        if not is_constant(view.w):
            return _alike(view.result)
        squares = np.asarray(read(view.w, self.store), np.float64) ** 2
        energies = squares @ np.broadcast_to(self._gains(view.x), squares.shape[1])
        if view.bias is not None and is_constant(view.bias):
            energies = energies + np.asarray(read(view.bias, self.store), np.float64) ** 2
        return energies.reshape([1] * (rank - 1) + [len(energies)])

    def _gains(self, x: ir.Value) -> Energies:
        """The squares of a norm's gains, where the input of a product has such."""
        op = defining_op(x)
        if op is not None and op.name == "abq.norm" and op.opview.weight is not None:
            gains = op.opview.weight
            return self.of(gains) if is_constant(gains) else np.ones(1)
        if is_elementwise(op):
            for value in inputs(op):
                if is_constant(value) and abq.shape(value)[-1:] == abq.shape(x)[-1:]:
                    return self.of(value).reshape(-1, abq.shape(x)[-1]).mean(axis=0)
        return np.ones(1)

    def transpose(self, op: ir.Operation) -> Energies:
        return self.of(op.operands[0]).transpose(
            list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
        )

    def expand(self, op: ir.Operation) -> Energies:
        energies, shape = self.of(op.operands[0]), abq.shape(op.results[0])
        sizes: list[int] = []
        for axis, group in enumerate(groups(op)):
            cut = [shape[i] for i in group]
            if energies.shape[axis] == 1 or abq.DYNAMIC in cut:
                energies = energies.mean(axis=axis, keepdims=True)
                cut = [1] * len(group)
            sizes += cut
        return energies.reshape(sizes)

    def collapse(self, op: ir.Operation) -> Energies:
        energies, shape = self.of(op.operands[0]), abq.shape(op.operands[0])
        sizes: list[int] = []
        for group in groups(op):
            joined = [shape[i] for i in group]
            if abq.DYNAMIC in joined or all(energies.shape[i] == 1 for i in group):
                energies = energies.mean(axis=tuple(group), keepdims=True)
                joined = [1]
            for i, size in zip(group, joined, strict=False):
                energies = energies.repeat(size, i) if energies.shape[i] < size else energies
            sizes.append(int(np.prod(joined)))
        return energies.reshape(sizes)

    def slice(self, op: ir.Operation) -> Energies:
        energies = self.of(op.operands[0])
        names = ("static_offsets", "static_sizes", "static_strides")
        ranges = zip(*(ir.DenseI64ArrayAttr(op.attributes[n]) for n in names), strict=True)
        for axis, (offset, size, stride) in enumerate(ranges):
            if energies.shape[axis] == 1:
                continue
            if abq.DYNAMIC in (offset, size, stride):
                energies = energies.mean(axis=axis, keepdims=True)
                continue
            at = offset + stride * np.arange(size)
            energies = energies.take(at, axis=axis)
        return energies

    def concat(self, op: ir.Operation) -> Energies:
        axis = ir.IntegerAttr(op.attributes["dim"]).value
        parts = []
        for operand in op.operands:
            energies, size = self.of(operand), abq.shape(operand)[axis]
            if size == abq.DYNAMIC:
                return _alike(op.results[0])
            parts.append(energies.repeat(size, axis) if energies.shape[axis] < size else energies)
        sizes = list(np.broadcast_shapes(*(part.take([0], axis).shape for part in parts)))
        for i, part in enumerate(parts):
            sizes[axis] = part.shape[axis]
            parts[i] = np.broadcast_to(part, sizes)
        return np.concatenate(parts, axis)


def _alike(value: ir.Value) -> Energies:
    return np.ones([1] * len(abq.shape(value)))


def _is_loop(result: ir.AffineExpr) -> bool:
    return isinstance(result, ir.AffineDimExpr)


def _of_tree(tree: Any, read_by: list[Energies]) -> Energies | float:
    """The energies of what the body of a loop computes of its inputs."""
    name, *operands = tree
    if name == "in":
        return read_by[operands[0]]
    if name == "const":
        return float(operands[0]) ** 2
    if name in ("arith.addf", "arith.subf"):
        return _of_tree(operands[-2], read_by) + _of_tree(operands[-1], read_by)
    if name == "arith.mulf":
        return _of_tree(operands[-2], read_by) * _of_tree(operands[-1], read_by)
    if name in ("arith.negf", "arith.extf", "arith.truncf"):
        return _of_tree(operands[-1], read_by)
    return 1.0


_RULES: dict[str, Callable[[_Energies, ir.Operation], Energies]] = {
    "abq.matmul": _Energies.matmul,
    "linalg.transpose": _Energies.transpose,
    "tensor.expand_shape": _Energies.expand,
    "tensor.collapse_shape": _Energies.collapse,
    "tensor.extract_slice": _Energies.slice,
    "tensor.concat": _Energies.concat,
}
