"""Steps of a random graph that sum: reductions, normalizations, products, windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .draft import Draft, Value, step

_REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSumExp",
)  # fmt: skip


@step
def reduction(g: Draft, x: Value) -> Value | None:
    op_type = g.choose.choice(_REDUCTIONS)
    if x.dtype not in ("float32", "float64", "int32", "int64") or 0 in x.shape:
        return None
    if x.is_integer and op_type not in ("ReduceSum", "ReduceMax", "ReduceMin"):
        return None
    operands = []
    if x.rank and g.coin(0.85):
        axes = g.choose.sample(range(x.rank), g.choose.randint(1, min(3, x.rank)))
        axes = [axis - x.rank if g.coin(0.3) else axis for axis in axes]
        operands.append(g.constant(np.array(axes, np.int64)))
    keepdims = g.choose.randrange(2)
    exact = None if op_type in ("ReduceSum", "ReduceMax", "ReduceMin") else False
    return g.add(op_type, x, *operands, keepdims=keepdims, exact=exact)


@step
def arg_extreme(g: Draft, x: Value) -> Value | None:
    if not x.exact or not x.rank or 0 in x.shape or x.dtype not in ("float32", "int32", "int8"):
        return None
    return g.add(
        g.choose.choice(["ArgMax", "ArgMin"]),
        x,
        axis=g.choose.randrange(-x.rank, x.rank),
        keepdims=g.choose.randrange(2),
        select_last_index=g.choose.randrange(2),
    )


@step
def top_k(g: Draft, x: Value) -> Value | None:
    """Its values only: which of equal ones is named first is defined, but not by all kept."""
    if not x.rank or 0 in x.shape or x.dtype not in ("float32", "int64", "int32"):
        return None
    axis = g.choose.randrange(x.rank)
    k = g.constant(np.array([g.choose.randint(1, x.shape[axis])], np.int64))
    found = g.add("TopK", x, k, results=2, axis=axis, largest=g.choose.randrange(2), kept=False)
    if found:
        g.values.append(found)
    return found


@step
def running_sum(g: Draft, x: Value) -> Value | None:
    if not x.rank or x.dtype not in ("float32", "int32", "int64", "float64"):
        return None
    axis = g.constant(np.array(g.choose.randrange(-x.rank, x.rank), np.int64))
    flags = {"exclusive": g.choose.randrange(2), "reverse": g.choose.randrange(2)}
    return g.add("CumSum", x, axis, **flags)


@step
def softmax(g: Draft, x: Value) -> Value | None:
    if not x.rank or x.dtype != "float32" or 0 in x.shape:
        return None
    op_type = g.choose.choice(["Softmax", "LogSoftmax"])
    return g.add(op_type, x, axis=g.choose.randrange(-x.rank, x.rank), exact=False)


@step
def layer_norm(g: Draft, x: Value) -> Value | None:
    if not x.rank or x.dtype != "float32" or 0 in x.shape:
        return None
    axis = g.choose.randrange(x.rank)
    scale = g.constant(g.array("float32", x.shape[axis:]))
    bias = [g.constant(g.array("float32", x.shape[axis:]))] if g.coin() else []
    return g.add("LayerNormalization", x, scale, *bias, axis=axis, epsilon=0.1, exact=False)


@step
def channel_norm(g: Draft, x: Value) -> Value | None:
    if x.rank < 3 or x.dtype != "float32" or 0 in x.shape:
        return None
    scale, bias = (g.constant(g.array("float32", [x.shape[1]])) for _ in range(2))
    return g.add("InstanceNormalization", x, scale, bias, epsilon=0.1, exact=False)


@step
def batch_norm(g: Draft, x: Value) -> Value | None:
    if x.rank < 2 or x.dtype != "float32" or 0 in x.shape:
        return None
    scale, bias, mean = (g.constant(g.array("float32", [x.shape[1]])) for _ in range(3))
    variance = g.constant(np.abs(g.array("float32", [x.shape[1]])) + np.float32(0.5))
    return g.add("BatchNormalization", x, scale, bias, mean, variance, exact=False)


@step
def matmul(g: Draft, x: Value) -> Value | None:
    if not x.rank or x.dtype not in ("float32", "float64", "int32"):
        return None
    k, n = x.shape[-1], g.choose.choice([1, 2, 3, 5, 8])
    forms: list[tuple[int, ...]] = [(k, n), (k, n), (k,)]
    if x.rank > 2:
        forms.append((*x.shape[:-2], k, n))
        forms.append((1, k, n))
        forms.append((*(1 if g.coin() else size for size in x.shape[:-2]), k, n))
    return g.add("MatMul", x, g.operand(x.dtype, g.choose.choice(forms)))


@step
def gemm(g: Draft, x: Value) -> Value | None:
    if x.rank != 2 or x.dtype != "float32":
        return None
    flip_a, flip_b = g.choose.randrange(2), g.choose.randrange(2)
    m, k = x.shape[::-1] if flip_a else x.shape
    n = g.choose.choice([1, 2, 3, 5, 8])
    b = g.operand("float32", (n, k) if flip_b else (k, n))
    c = [g.operand("float32", g.choose.choice([(), (n,), (1, n), (m, 1), (m, n)]))] * g.coin(0.7)
    scales = {"alpha": g.choose.choice([1.0, 0.5]), "beta": g.choose.choice([1.0, 2.0])}
    return g.add("Gemm", x, b, *c, transA=flip_a, transB=flip_b, **scales)


@step
def einsum(g: Draft, x: Value) -> Value | None:
    if x.dtype != "float32":
        return None
    if x.rank == 1:
        equation, shape = "i,j->ji", [3]
    elif x.rank == 2:
        forms = [("ij,kj->ik", [3, x.shape[1]]), ("ij,ij->i", x.shape), ("ij,jk", [x.shape[1], 2])]
        equation, shape = g.choose.choice(forms)
    elif x.rank == 3:
        equation, shape = "bij,bkj->bik", [x.shape[0], 4, x.shape[2]]
    else:
        equation, shape = "...j,jk->...k", [x.shape[-1], 3] if x.rank else [1, 3]
    return g.add("Einsum", x, g.operand("float32", shape), equation=equation)


def _window(g: Draft, x: Value, *, dilated: bool = False) -> dict[str, Any] | None:
    """The attributes of a window that fits into the (padded) input."""
    kernel = [g.choose.choice([1, 2, 3]) for _ in x.shape[2:]]
    dilations = [g.choose.choice([1, 2]) if dilated and g.coin(0.3) else 1 for _ in kernel]
    pads = [g.choose.randrange(size) if g.coin() else 0 for size in kernel * 2]
    window: dict[str, Any] = {"kernel_shape": kernel}
    if g.coin(0.6):
        window["strides"] = [g.choose.choice([1, 2, 3]) for _ in kernel]
    if g.coin(0.25):
        window["auto_pad"] = g.choose.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        pads = [0] * len(pads)
    else:
        window["pads"] = pads
        window["dilations"] = dilations
    ends = zip(x.shape[2:], pads, pads[len(kernel) :], kernel, dilations, strict=False)
    fits = all(size + a + b >= d * (k - 1) + 1 for size, a, b, k, d in ends)
    return window if fits else None


@step
def convolution(g: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4, 5) or x.dtype != "float32" or 0 in x.shape:
        return None
    window = _window(g, x, dilated=True)
    if window is None:
        return None
    channels = x.shape[1]
    group = g.choose.choice([1, channels])
    count = group * g.choose.choice([1, 2])
    weight = g.operand("float32", (count, channels // group, *window["kernel_shape"]))
    bias = [g.operand("float32", (count,))] * g.coin()
    return g.add("Conv", x, weight, *bias, group=group, **window)


@step
def pooling(g: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4, 5) or x.dtype != "float32" or 0 in x.shape:
        return None
    if g.coin(0.2):
        return g.add(g.choose.choice(["GlobalAveragePool", "GlobalMaxPool"]), x, exact=False)
    window = _window(g, x)
    if window is None:
        return None
    if "auto_pad" not in window:
        window["ceil_mode"] = g.choose.randrange(2)
    if g.coin():
        return g.add("MaxPool", x, **window)
    include = g.choose.randrange(2)
    return g.add("AveragePool", x, count_include_pad=include, exact=False, **window)


@step
def resize(g: Draft, x: Value) -> Value | None:
    if x.rank not in (3, 4) or x.dtype != "float32" or 0 in x.shape:
        return None
    sizes = g.constant(np.array([*x.shape[:2], *(g.choose.randint(1, 6) for _ in x.shape[2:])]))
    return g.add(
        "Resize", x, None, None, sizes, mode="linear", exact=False,
        coordinate_transformation_mode=g.choose.choice(
            ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
        ),
    )  # fmt: skip
