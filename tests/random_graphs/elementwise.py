"""Steps of a random graph that go element by element."""

from __future__ import annotations

import numpy as np
from onnx import helper

from .draft import ALL, FLOATS, INTEGERS, Draft, Value, step

_SMOOTH = (
    "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Sin", "Cos", "Atan", "Exp", "Elu", "Selu",
    "Celu", "HardSigmoid", "HardSwish", "Gelu", "Mish", "Sinh", "Asinh", "LeakyRelu",
)  # fmt: skip
_EXACT = ("Abs", "Neg", "Relu", "Identity", "Floor", "Ceil", "Round", "Sign")
_STEPS = {"Floor", "Ceil", "Round", "Sign"}


@step
def smooth(g: Draft, x: Value) -> Value | None:
    if x.dtype not in ("float32", "float16"):
        return None
    return g.add(g.choose.choice(_SMOOTH), x, exact=False)


@step
def exact(g: Draft, x: Value) -> Value | None:
    op_type = g.choose.choice(_EXACT)
    signed = x.is_float or x.dtype.startswith("int")
    if op_type in _STEPS and not (x.is_float and x.exact):
        return None
    if op_type != "Identity" and not signed:
        return None
    return g.add(op_type, x)


@step
def logical_not(g: Draft, x: Value) -> Value | None:
    if x.dtype == "bool":
        return g.add("Not", x)
    return g.add("BitwiseNot", x) if x.is_integer else None


def broadcast_shape(g: Draft, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One that broadcasts with `shape`."""
    sizes = [1 if g.coin(0.25) else size for size in shape]
    sizes = [g.choose.choice([1, 2, 3]) if size == 1 and g.coin(0.2) else size for size in sizes]
    if g.coin(0.3):
        sizes = sizes[g.choose.randrange(len(sizes) + 1) :]
    elif g.coin(0.15):
        sizes = [g.choose.choice([1, 2]), *sizes]
    return tuple(sizes)


def _other(g: Draft, x: Value) -> Value:
    return g.operand(x.dtype, broadcast_shape(g, x.shape))


def _both_ways(g: Draft, a: Value, b: Value) -> tuple[Value, Value]:
    return (a, b) if g.coin(0.7) else (b, a)


@step
def arithmetic(g: Draft, x: Value) -> Value | None:
    if x.dtype == "bool":
        return None
    op_type = g.choose.choice(["Add", "Sub", "Mul", "Add", "Mul", "Min", "Max"])
    return g.add(op_type, *_both_ways(g, x, _other(g, x)))


@step
def several(g: Draft, x: Value) -> Value | None:
    if not x.is_float:
        return None
    op_type = g.choose.choice(["Sum", "Mean", "Max", "Min"])
    return g.add(op_type, x, _other(g, x), _other(g, x), exact=op_type != "Mean" and None)


@step
def division(g: Draft, x: Value) -> Value | None:
    if x.dtype == "bool":
        return None
    divisor = g.array(x.dtype, broadcast_shape(g, x.shape))
    divisor = np.where(divisor == 0, np.ones_like(divisor), divisor)
    by = g.constant(divisor) if g.coin() else g.given(divisor)
    if x.is_integer and g.coin(0.4):
        return g.add("Mod", x, by)
    return g.add("Div", x, by, exact=x.is_integer and x.exact)


@step
def float_remainder(g: Draft, x: Value) -> Value | None:
    if not (x.dtype == "float32" and x.exact):
        return None
    by = g.constant(np.float32(g.choose.choice([0.75, -1.25, 2.0])))
    return g.add("Mod", x, by, fmod=1)


@step
def power(g: Draft, x: Value) -> Value | None:
    if x.dtype != "float32":
        return None
    return g.add("Pow", x, g.constant(np.float32(g.choose.choice([1, 2, 3]))), exact=False)


@step
def comparison(g: Draft, x: Value) -> Value | None:
    if not x.exact or x.dtype == "bool":
        return None
    op_type = g.choose.choice(["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
    other = _other(g, x)
    return g.add(op_type, *_both_ways(g, x, other)) if other.exact else None


@step
def logic(g: Draft, x: Value) -> Value | None:
    if x.dtype == "bool":
        return g.add(g.choose.choice(["And", "Or", "Xor", "Equal"]), x, _other(g, x))
    if x.is_integer:
        op_type = g.choose.choice(["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
        return g.add(op_type, x, _other(g, x))
    return None


@step
def shift(g: Draft, x: Value) -> Value | None:
    if not x.dtype.startswith("u"):
        return None
    by = g.constant(g.array(x.dtype, broadcast_shape(g, x.shape)) % 8)
    return g.add("BitShift", x, by, direction=g.choose.choice(["LEFT", "RIGHT"]))


@step
def where(g: Draft, x: Value) -> Value | None:
    condition = g.operand("bool", broadcast_shape(g, x.shape))
    return g.add("Where", condition, *_both_ways(g, x, _other(g, x)))


@step
def clip(g: Draft, x: Value) -> Value | None:
    if x.dtype == "bool":
        return None
    low, high = (1, 4) if x.dtype.startswith("u") else (-2, 2)
    bounds = [
        g.constant(np.array(bound, x.dtype)) if g.coin(0.8) else None for bound in (low, high)
    ]
    return g.add("Clip", x, *bounds)


@step
def cast(g: Draft, x: Value) -> Value | None:
    """Only where the value fits: what else comes out is not defined."""
    target = g.choose.choice(ALL)
    if target == "bool":
        fits = x.exact
    elif target in INTEGERS:
        limits = np.iinfo(target)
        array = x.array.astype(np.float64)
        inside = array.min(initial=0) >= limits.min and array.max(initial=0) <= limits.max
        fits = x.exact and inside
    else:
        fits = bool(np.abs(x.array.astype(np.float64)).max(initial=0) < 2000)
    narrowed = target in FLOATS and not x.exact
    to = helper.np_dtype_to_tensor_dtype(np.dtype(target))
    return g.add("Cast", x, to=to, exact=False if narrowed else None) if fits else None


@step
def slope(g: Draft, x: Value) -> Value | None:
    if x.dtype != "float32" or not x.rank:
        return None
    shape = tuple(1 if g.coin(0.4) else size for size in x.shape)
    return g.add("PRelu", x, g.constant(g.array("float32", shape)))
