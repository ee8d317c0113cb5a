"""Random numbers, each a function of the seed and its place (random_bits.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from abqc.dialects.mlir import ir, linalg

from ..building.scalars import Scalar, const
from ..parts.random_bits import bits, key_of, normal, place, uniform
from ..registry import Node, lowers
from ..values.element_types import BOOL, F32, F64, I32, INDEX, ElementType
from ..values.symbolic import Dim
from ..values.value import Value


def _filled(
    node: Node,
    dims: Sequence[Dim],
    dtype: ElementType,
    number: Callable[[Scalar, ElementType], Scalar],
) -> Value:
    """A tensor of `number(random bits, dtype)`."""
    b, key = node.b, key_of(node)
    for dim in dims:
        b.index(dim)  # before the loop

    def body(indices: list[Scalar]) -> Scalar:
        return number(bits(key, place(b, indices, dims)), dtype)

    return b.tabulate(dims, dtype, body)


def _floats(node: Node, dtype: ElementType) -> ElementType:
    if not dtype.is_float:
        raise node.error(f"its result must be of floats, not {dtype.name}")
    return dtype


def _shape(node: Node) -> list[Dim]:
    sizes = node.ints("shape")
    if min(sizes, default=0) < 0:
        raise node.error(f"its shape {sizes} has a negative size")
    return [Dim.of(size) for size in sizes]


def _type_like(node: Node) -> ElementType:
    return _floats(node, node.type_of("dtype") if node.has("dtype") else node.input(0).dtype)


def _uniform(node: Node, dims: Sequence[Dim], dtype: ElementType) -> Value:
    low, high = node.float("low", 0.0), node.float("high", 1.0)
    return _filled(node, dims, dtype, lambda r, t: uniform(r, t) * (high - low) + low)


def _normal(node: Node, dims: Sequence[Dim], dtype: ElementType) -> Value:
    mean, scale = node.float("mean", 0.0), node.float("scale", 1.0)
    return _filled(node, dims, dtype, lambda r, t: normal(r, t) * scale + mean)


@lowers("RandomUniform")
def random_uniform(node: Node) -> Value:
    return _uniform(node, _shape(node), _floats(node, node.type_of("dtype", 1)))


@lowers("RandomUniformLike")
def random_uniform_like(node: Node) -> Value:
    return _uniform(node, node.input(0).dims, _type_like(node))


@lowers("RandomNormal")
def random_normal(node: Node) -> Value:
    return _normal(node, _shape(node), _floats(node, node.type_of("dtype", 1)))


@lowers("RandomNormalLike")
def random_normal_like(node: Node) -> Value:
    return _normal(node, node.input(0).dims, _type_like(node))


@lowers("Bernoulli")
def bernoulli(node: Node) -> Value:
    """1 with the probability that the input has at a place."""
    b, x, key = node.b, node.input(0), key_of(node)
    dtype = node.type_of("dtype") if node.has("dtype") else x.dtype
    wide = F64 if x.dtype is F64 else F32
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    for dim in x.dims:
        b.index(dim)

    def body(indices: list[Scalar]) -> Scalar:
        drawn = uniform(bits(key, place(b, indices, x.dims)), wide)
        return (drawn < b.read(source, indices).cast(wide)).cast(dtype)

    return b.tabulate(x.dims, dtype, body)


@lowers("Multinomial")
def multinomial(node: Node) -> Value:
    """Classes drawn by their logarithmic weights: that of the largest weight plus Gumbel noise
    (Gumbel, 1954), which needs no sum over the classes."""
    b, x, key = node.b, node.input(0), key_of(node)
    if x.rank != 2 or not x.dtype.is_float:
        raise node.error(f"its input must be floats of two axes, batch and classes, not {x}")
    dtype = node.type_of("dtype", I32.onnx)
    wide = F64 if x.dtype is F64 else F32
    rows, classes = x.dims
    space = (rows, Dim.of(node.int("sample_size", 1)), classes)
    for dim in space:
        b.index(dim)
    d = [ir.AffineDimExpr.get(i) for i in range(3)]
    read, written = ir.AffineMap.get(3, 0, [d[0], d[2]]), ir.AffineMap.get(3, 0, [d[0], d[1]])
    best = b.full(wide, space[:2], -math.inf)
    chosen = b.full(dtype, space[:2], 0)

    def body(weight: ir.Value, most: ir.Value, which: ir.Value) -> list[ir.Value]:
        indices = [Scalar(linalg.IndexOp(axis).result, INDEX) for axis in range(3)]
        drawn = uniform(bits(key, place(b, indices, space)), wide)
        noise = -(-(drawn.maximum(1e-30)).log()).log()
        value = Scalar(weight, x.dtype).cast(wide) + noise
        larger = value > Scalar(most, wide)
        number = larger.select(indices[2].cast(dtype), Scalar(which, dtype))
        return [larger.select(value, Scalar(most, wide)).ssa, number.ssa]

    made = b.structured(
        [b.tensor(x)], [best, chosen], [read, written, written], [True, True, False], body
    )
    return Value(dtype, space[:2], ssa=made[1])


@lowers("Dropout")
def dropout(node: Node) -> list[Value]:
    """Nothing is dropped, unless `training_mode` is on: then as ONNX defines it, with our bits."""
    b, x, training = node.b, node.input(0), node.optional(2)
    on = None
    if node.version < 7 and not node.has("is_test"):
        # By the letter a model for training; those that are published are not.
        b.note("drops nothing, as in inference: it does not say is_test = 0")
    elif node.version < 7 and not node.int("is_test"):
        on = const(True, BOOL)
    elif training is not None:
        mode = training.numpy()
        if mode is None:
            on = b.item(training, *[0] * training.rank)
        elif mode.any():
            on = const(True, BOOL)
    if on is None:
        full = Value(BOOL, x.dims, ssa=b.full(BOOL, x.dims, True)) if node.wants(1) else None
        return [x] if full is None else [x, full]
    return _dropped(node, x, on)


def _dropped(node: Node, x: Value, on: Scalar) -> list[Value]:
    """Each element is kept with the probability 1 - ratio, and then divided by that."""
    b, ratio = node.b, node.optional(1)
    if ratio is None:
        share = const(node.float("ratio", 0.5), F32)
    else:
        share = b.item(ratio, *[0] * ratio.rank).cast(F32)
    b.check((share >= 0) & (share < 1), "ratio must be in [0, 1)")
    share = on.select(share, 0.0)

    def keep(random: Scalar, _: ElementType) -> Scalar:
        return uniform(random, F32) >= share

    mask = _filled(node, x.dims, BOOL, keep)
    scale = (1.0 / (1.0 - share)).cast(x.dtype)
    result = b.elementwise([x, mask], x.dtype, lambda v, m: m.select(v * scale, v.like(0)))
    return [result, mask]
