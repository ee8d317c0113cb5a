"""Operators end to end against onnxruntime: compiled in float, run with several shapes each.

A graph holds many operators, because a compilation costs more than they do. It runs with ordinary
sizes, with single elements and, where ONNX says what to expect, with empty tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper
from operator_graph import Feeds, Graph, integers, normal

Case = tuple[Graph, list[Feeds]]


def unary() -> Case:
    g = Graph(x=("float32", "n", 6))
    for op in (
        *("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Abs", "Neg", "Elu", "HardSigmoid", "HardSwish"),
        *("Softplus", "Floor", "Ceil", "Round", "Reciprocal", "Sin", "Cos", "Sign"),
    ):
        g(op, "x")
    g("LeakyRelu", "x", alpha=0.1)
    g("Clip", "x", np.float32(-0.5), np.float32(0.5))
    positive = g("Abs", "x")
    g("Sqrt", positive)
    g("Log", positive)
    return g, [{"x": normal(n, 6)} for n in (3, 1, 0, 700)]


def broadcasts() -> Case:
    g = Graph(x=("float32", "n", 6), y=("float32", "m", "n", 1), z=("float32", 6))
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Greater", "LessOrEqual", "Equal"):
        g(op, "x", "y")
        g(op, "z", "x")
    g("Pow", "x", np.float32(2))
    g("Pow", g("Abs", "y"), "z")
    g("PRelu", "x", "z")
    less = g("Less", "x", "z")
    g("Where", less, "x", "y")
    g("And", less, g("Greater", "x", "y"))
    g("Or", less, g("Not", less))
    g("Cast", less, to=TensorProto.FLOAT)
    g("Cast", "x", to=TensorProto.INT64)

    def feeds(n: int, m: int) -> Feeds:
        return {"x": normal(n, 6), "y": normal(m, n, 1, seed=1), "z": normal(6, seed=2)}

    return g, [feeds(3, 2), feeds(1, 1), feeds(5, 4), feeds(0, 2), feeds(4, 0)]


def matmuls_of_activations() -> Case:
    g = Graph(
        a=("float32", "n", "k"),
        b=("float32", "k", "m"),
        c=("float32", "B", "n", "k"),
        d=("float32", "B", 2, "n", "k"),
        e=("float32", 2, "k", "m"),
        v=("float32", "k"),
    )
    for x, y in ("ab", "cb", "de", "av", "vb"):
        g("MatMul", x, y)
    g("Gemm", "a", "a", transB=1)
    g("Gemm", "b", "b", transA=1)
    g("MatMul", "d", g("Transpose", "d", perm=[0, 1, 3, 2]))
    g("MatMul", g("Transpose", "d", perm=[0, 1, 3, 2]), "d")

    def feeds(n: int, k: int, m: int, batch: int) -> Feeds:
        shapes = {"a": (n, k), "b": (k, m), "c": (batch, n, k), "d": (batch, 2, n, k)}
        shapes |= {"e": (2, k, m), "v": (k,)}
        return {name: normal(*s, seed=i) for i, (name, s) in enumerate(shapes.items())}

    return g, [feeds(*s) for s in ((3, 4, 5, 2), (1, 7, 1, 1), (17, 33, 9, 3), (0, 3, 4, 2))] + [
        feeds(3, 4, 5, 0),
        feeds(3, 0, 2, 1),
    ]


def matmuls_of_weights() -> Case:
    w, bias = normal(8, 5, seed=9), normal(5, seed=8)
    g = Graph(
        a=("float32", "n", 8),
        c=("float32", "B", "n", 8),
        e=("float32", "B", 2, "n", 8),
        v=("float32", 8),
    )
    for x in "acev":
        g("MatMul", x, w)
    g("Add", g("MatMul", "a", w), bias)
    g("Gemm", "a", w.T.copy(), bias, transB=1, alpha=0.5, beta=2.0)
    g("MatMul", normal(3, 8), g("Transpose", "a", perm=[1, 0]))
    g("MatMul", "e", normal(2, 8, 3))

    def feeds(n: int, batch: int) -> Feeds:
        shapes = {"a": (n, 8), "c": (batch, n, 8), "e": (batch, 2, n, 8), "v": (8,)}
        return {name: normal(*s, seed=i) for i, (name, s) in enumerate(shapes.items())}

    return g, [feeds(3, 2), feeds(1, 1), feeds(33, 3), feeds(0, 2), feeds(2, 0)]


def convolutions() -> Case:
    g = Graph(x=("float32", "n", 4, "h", "w"), s=("float32", "n", 4, "l"))
    g("Conv", "x", normal(6, 4, 3, 3), normal(6, seed=1), pads=[1, 2, 0, 1], strides=[2, 1])
    g("Conv", "x", normal(6, 4, 3, 2), dilations=[2, 1])
    g("Conv", "x", normal(6, 4, 1, 1))
    g("Conv", "x", normal(6, 2, 3, 3), normal(6, seed=1), group=2, pads=[1, 1, 1, 1])
    g("Conv", "x", normal(4, 1, 3, 3), group=4, strides=[2, 2])
    g("Conv", "s", normal(3, 4, 3), normal(3), pads=[1, 1])
    g("Conv", "s", normal(4, 2, 3), group=2, dilations=[2])

    def feeds(n: int, h: int, w: int, length: int) -> Feeds:
        return {"x": normal(n, 4, h, w), "s": normal(n, 4, length, seed=1)}

    return g, [feeds(2, 7, 8, 9), feeds(1, 5, 5, 5), feeds(3, 12, 13, 16), feeds(0, 7, 8, 9)]


def convolutions_in_3d() -> Case:
    g = Graph(x=("float32", "n", 2, "d", 5, 4))
    g("Conv", "x", normal(3, 2, 2, 2, 2))
    g("Conv", "x", normal(8, 1, 1, 3, 3), normal(8), group=2, dilations=[1, 2, 1])
    pads, strides = [0, 1, 0, 1, 0, 1], [1, 2, 1]
    g("Conv", "x", normal(4, 1, 2, 3, 2), normal(4), group=2, strides=strides, pads=pads)
    return g, [{"x": normal(n, 2, d, 5, 4)} for n, d in ((2, 3), (1, 2))]


def pools() -> Case:
    g = Graph(x=("float32", "n", 4, "h", "w"), s=("float32", "n", 4, "l"))
    g("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    g("MaxPool", "x", kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[2, 1])
    g("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])
    g("MaxPool", "s", kernel_shape=[3], strides=[2])
    g("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])
    g("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    g("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    g("GlobalAveragePool", "x")
    g("GlobalMaxPool", "x")

    def feeds(n: int, h: int, w: int, length: int) -> Feeds:
        return {"x": normal(n, 4, h, w), "s": normal(n, 4, length, seed=1)}

    return g, [feeds(2, 7, 8, 9), feeds(1, 6, 5, 5)]


def reductions() -> Case:
    g = Graph(x=("float32", "n", 4, "m"))
    for axes in ([0], [1], [2], [0, 2], [-1, 1], [0, 1, 2]):
        for keepdims in (0, 1):
            g("ReduceSum", "x", np.array(axes), keepdims=keepdims)
        g("ReduceMean", "x", axes=axes)
        g("ReduceMax", "x", axes=axes, keepdims=0)
    for op in ("ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"):
        g(op, "x", axes=[2])
        g(op, "x", axes=[1], keepdims=0)
    return g, [{"x": normal(n, 4, m)} for n, m in ((3, 5), (1, 1), (7, 40))]


def norms() -> Case:
    g = Graph(x=("float32", "n", "m", 6), c=("float32", "n", 6, "m"))
    for axis in (-1, 1, 0):
        g("Softmax", "x", axis=axis)
    g("LogSoftmax", "x", axis=2)
    g("LayerNormalization", "x", normal(6), normal(6, seed=1), axis=-1)
    centred = g("Sub", "x", g("ReduceMean", "x", axes=[-1]))
    variance = g("ReduceMean", g("Mul", centred, centred), axes=[-1])
    g("Mul", g("Div", centred, g("Sqrt", g("Add", variance, np.float32(1e-5)))), normal(6))
    mean_and_variance = normal(6, seed=2), np.abs(normal(6, seed=3))
    g("BatchNormalization", "c", normal(6), normal(6, seed=1), *mean_and_variance)

    def feeds(n: int, m: int) -> Feeds:
        return {"x": normal(n, m, 6), "c": normal(n, 6, m, seed=1)}

    return g, [feeds(3, 5), feeds(1, 1), feeds(2, 70), feeds(0, 3)]


def empty_reductions() -> Case:
    g = Graph(x=("float32", "n", 6))
    g("ReduceSum", "x", np.array([0]))
    g("ReduceSum", "x", np.array([1]))
    g("ReduceMax", g("ReduceSum", "x", np.array([0])), axes=[1])
    return g, [{"x": normal(n, 6)} for n in (0, 2)]


def transposes() -> Case:
    g = Graph(x=("float32", "a", "b", 3, "c"), y=("int64", "a", "b"), z=("bool", "a", 2, "b"))
    for perm in list(itertools.permutations(range(4)))[1:]:
        g("Transpose", "x", perm=list(perm))
    g("Transpose", "y", perm=[1, 0])
    g("Transpose", "z", perm=[2, 0, 1])

    def feeds(a: int, b: int, c: int) -> Feeds:
        return {"x": normal(a, b, 3, c), "y": integers(a, b), "z": normal(a, 2, b) > 0}

    return g, [feeds(2, 4, 5), feeds(1, 1, 1), feeds(0, 2, 3), feeds(20, 7, 33)]


def gathers() -> Case:
    table = normal(7, 4)
    g = Graph(x=("float32", "n", 5, "m"), i=("int64", "k"), j=("int32", "k", 2))
    for indices in ("i", "j"):
        g("Gather", "x", indices, axis=1)
        g("Gather", table, indices)
    g("Gather", "x", np.array([0, -1]), axis=0)
    g("Gather", "x", np.array(-1), axis=2)
    g("Gather", "x", np.array([[1, -2]]), axis=1)
    # Indices that cover a part of the other axes only.
    g("GatherElements", "x", np.array([[[4], [-1]]]), axis=1)

    def feeds(n: int, m: int, k: int) -> Feeds:
        i, j = (integers(*shape, low=-5, high=5) for shape in ((k,), (k, 2)))
        return {"x": normal(n, 5, m), "i": i, "j": j.astype(np.int32)}

    return g, [feeds(2, 3, 4), feeds(1, 1, 1), feeds(3, 2, 0)]


def slices_and_shapes() -> Case:
    g = Graph(x=("float32", "n", 6, "m"), y=("float32", "n", 2, "m"))
    g("Concat", "x", "y", "x", axis=1)
    g("Concat", "x", "x", axis=0)
    g("Concat", g("Neg", "x"), "x", axis=-1)
    for starts, ends, axes, steps in (
        ([1], [5], [1], [1]),
        ([1, 0], [100, -1], [2, 1], [1, 2]),
        ([-1], [-100], [1], [-1]),
        ([-2], [2**31], [2], [1]),
    ):
        g("Slice", "x", *map(np.array, (starts, ends, axes, steps)))
    g("Pad", "x", np.array([0, 1, 2, 0, 0, 1]))
    g("Pad", "x", np.array([0, 1, 0, 0, 0, 1]), np.float32(3.5))
    g("Pad", "x", np.array([0, 1, 0, 0, 2, 0]), mode="reflect")
    g("Pad", "x", np.array([0, 1, 0, 0, 2, 0]), mode="edge")
    for shape in ([0, -1], [-1], [0, 0, 1, -1]):
        g("Reshape", "x", np.array(shape))
    g("Flatten", "x", axis=2)
    g("Squeeze", g("Unsqueeze", "x", np.array([0, 2])), np.array([2]))
    g("Expand", "y", np.array([3, 1, 1, 1]))
    g("Tile", "x", np.array([1, 2, 3]))
    g("Split", "x", np.array([1, 2, 3]), results=3, axis=1)
    shape = g("Shape", "x")
    last = g("Gather", shape, np.array([2]))
    g("Reshape", "x", g("Concat", last, np.array([-1]), axis=0))
    g("Expand", np.float32(2), shape)
    g("ConstantOfShape", shape)
    g("Range", np.array(0), g("Gather", shape, np.array(0)), np.array(1))
    g("Identity", shape)

    def feeds(n: int, m: int) -> Feeds:
        return {"x": normal(n, 6, m), "y": normal(n, 2, m, seed=1)}

    return g, [feeds(2, 3), feeds(1, 1), feeds(5, 17)]


def empty_slices_and_shapes() -> Case:
    g = Graph(x=("float32", "n", 6, "m"), y=("float32", "n", 2, "m"))
    g("Concat", "x", "y", axis=1)
    g("Slice", "x", *map(np.array, ([1], [5], [1])))
    g("Pad", "x", np.array([0, 1, 2, 0, 0, 1]))
    g("Reshape", "x", np.array([-1]))
    g("Flatten", "x", axis=2)
    return g, [{"x": normal(n, 6, m), "y": normal(n, 2, m)} for n, m in ((2, 3), (0, 3), (2, 0))]


def integers_and_booleans() -> Case:
    g = Graph(x=("int64", "n", 4), y=("int32", "n", 4), b=("bool", "n", 4))
    for op in ("Add", "Div", "Mod", "Equal", "Max"):
        g(op, "x", np.array(3))
    for op in ("Sub", "Mul", "Less", "Min"):
        g(op, "y", np.array(7, np.int32))
    # Products that wrap around do not cancel.
    g("Div", g("Mul", "x", np.array(2**62)), np.array(2**62))
    g("Div", g("Mul", "y", np.array(2**30, np.int32)), np.array(2**30, np.int32))
    for value, types in (("x", "FLOAT BOOL INT32"), ("y", "INT64 FLOAT"), ("b", "INT64 FLOAT")):
        for type_ in types.split():
            g("Cast", value, to=TensorProto.DataType.Value(type_))
    g("Where", "b", "x", np.array(0))
    for op in ("Neg", "Abs", "Sign"):
        g(op, "x")
    g("Xor", "b", g("Not", "b"))
    g("ReduceSum", "x", np.array([1]))
    g("ReduceMax", "x", axes=[1])
    g("ReduceMin", "y", axes=[0])
    g("ArgMax", "x", axis=1)
    g("Concat", "b", "b", axis=1)

    def feeds(n: int) -> Feeds:
        return {"x": integers(n, 4), "y": integers(n, 4, dtype=np.int32), "b": normal(n, 4) > 0}

    return g, [feeds(3), feeds(1), feeds(40)]


def arguments_of_extremes() -> Case:
    g = Graph(x=("float32", "n", 4, "m"))
    g("ArgMax", "x", axis=1)
    g("ArgMax", "x", axis=2, keepdims=0)
    g("ArgMin", "x", axis=0)
    ties = np.zeros((2, 4, 5), np.float32)
    return g, [{"x": normal(3, 4, 5)}, {"x": normal(1, 4, 1)}, {"x": ties}]


def scalars() -> Case:
    g = Graph(x=("float32",), y=("int64",), z=("float32", "n"))
    g("Add", "x", np.float32(1))
    g("Mul", "x", "z")
    g("Cast", "y", to=TensorProto.FLOAT)
    g("ReduceSum", "z", np.array([0]), keepdims=0)
    g("Reshape", "x", np.array([1, 1]))
    g("Unsqueeze", "x", np.array([0]))
    g("Squeeze", g("ReduceMax", "z", axes=[0]))
    g("Expand", "x", np.array([2, 3]))
    g("Gather", "z", "y")
    g("Reshape", g("Slice", "z", np.array([0]), np.array([1])), np.zeros(0, np.int64))
    return g, [{"x": normal(), "y": np.array(-1), "z": normal(n)} for n in (3, 1)]


def outputs_of_one_buffer() -> Case:
    """Views of each other, of inputs, an input itself, and one tensor twice."""
    g = Graph(x=("float32", "n", 4))
    relu = g("Relu", "x")
    g.outputs = [
        relu,
        g("Reshape", relu, np.array([-1])),
        g("Identity", "x"),
        g("Identity", relu),
        g("Slice", relu, *map(np.array, ([1], [3], [1]))),
        g("Transpose", "x", perm=[1, 0]),
        g("Reshape", "x", np.array([4, -1])),
        g("Exp", relu),
    ]
    return g, [{"x": normal(n, 4)} for n in (3, 1, 0)]


def branches() -> Case:
    g = Graph(x=("float32", "n", 4), c=("bool",))
    constants = [
        numpy_helper.from_array(np.float32(2), "two"),
        numpy_helper.from_array(normal(4), "row"),
    ]
    results = [helper.make_tensor_value_info(r, TensorProto.FLOAT, ["n", 4]) for r in "te"]
    then = helper.make_node("Mul", ["x", "two"], ["t"])
    other = helper.make_node("Add", ["x", "row"], ["e"])
    result = g(
        "If",
        "c",
        then_branch=helper.make_graph([then], "then", [], results[:1], constants[:1]),
        else_branch=helper.make_graph([other], "else", [], results[1:], constants[1:]),
    )
    g("Relu", result)
    g("ReduceSum", result, np.array([0]))
    return g, [
        {"x": normal(3, 4), "c": np.array(True)},
        {"x": normal(2, 4), "c": np.array(False)},
    ]


def scans_sorts_and_scatters() -> Case:
    g = Graph(x=("float32", "n", 9), y=("int64", "n", 4), i=("int64", 2, 2))
    g("CumSum", "x", np.array(1))
    g("CumSum", "y", np.array(0))
    g("TopK", "x", np.array([3]), results=2)
    g("ScatterND", "x", "i", np.array([5, 6], np.float32))
    updates = np.array([[5, 6], [7, 8]], np.float32)
    g("ScatterElements", "x", np.array([[0, 1], [1, -2]]), updates, axis=1)
    i = np.array([[0, 1], [1, 2]])
    return g, [{"x": normal(n, 9), "y": integers(n, 4), "i": i} for n in (4, 2)]


FAST = (
    broadcasts,
    matmuls_of_activations,
    convolutions,
    reductions,
    norms,
    gathers,
    slices_and_shapes,
    integers_and_booleans,
)
SLOW = (
    unary,
    matmuls_of_weights,
    convolutions_in_3d,
    pools,
    empty_reductions,
    transposes,
    empty_slices_and_shapes,
    arguments_of_extremes,
    scalars,
    outputs_of_one_buffer,
    branches,
    scans_sorts_and_scatters,
)


@pytest.mark.parametrize(
    "case",
    [*FAST, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)],
    ids=lambda case: case.__name__,
)
def test_agrees_with_onnxruntime(case: Callable[[], Case], tmp_path: Path) -> None:
    graph, feeds = case()
    graph.check(tmp_path, *feeds, tolerance=1e-5)


def test_pads_of_what_others_leave_empty(tmp_path: Path) -> None:
    g = Graph(x=("float32", "n", 2))
    nothing = g("Pad", "x", np.array([1, -2, 0, 0]))
    g.outputs = [nothing, g("Pad", nothing, np.array([0, 1, 0, 2]), np.float32(3.5))]
    g.check(tmp_path, {"x": normal(3, 2)})


def test_gemm_of_activations_is_scaled(tmp_path: Path) -> None:
    g = Graph(a=("float32", "n", 4))
    g("Gemm", "a", "a", transB=1, alpha=0.5)
    g.check(tmp_path, {"a": normal(3, 4)}, tolerance=1e-5)


def test_instance_normalization_of_any_size(tmp_path: Path) -> None:
    g = Graph(x=("float32", "n", 3, "h", 4))
    g("InstanceNormalization", "x", normal(3), normal(3, seed=1))
    g.check(tmp_path, {"x": normal(2, 3, 5, 4)}, tolerance=1e-5)


def test_nan_and_infinity_are_kept(tmp_path: Path) -> None:
    """By ONNX's definitions in numpy: onnxruntime's maxima lose some NaN."""
    g = Graph(x=("float32", "n", 37))
    zero, one = np.float32(0), np.float32(1)
    relu, clip = g("Relu", "x"), g("Clip", "x", zero, one)
    references = {
        relu: lambda x: np.maximum(x, 0),
        clip: lambda x: np.clip(x, 0, 1),
        g("ReduceMax", "x", axes=[1]): lambda x: x.max(axis=1, keepdims=True),
        g("ReduceMax", "x", axes=[0]): lambda x: x.max(axis=0, keepdims=True),
        g("ReduceMin", "x", axes=[1]): lambda x: x.min(axis=1, keepdims=True),
        g("ReduceSum", relu, np.array([1])): lambda x: np.maximum(x, 0).sum(axis=1, keepdims=True),
        g("ReduceSum", clip, np.array([1])): lambda x: np.clip(x, 0, 1).sum(axis=1, keepdims=True),
        g("ReduceMax", g("Neg", "x"), axes=[1]): lambda x: (-x).max(axis=1, keepdims=True),
        g("Softmax", "x"): softmax,
    }
    g.outputs = list(references)
    x = normal(6, 37)
    x[1, 3], x[2, 2], x[3, 36], x[4] = np.nan, np.inf, -np.inf, -np.inf
    x[5, [0, 35]] = np.nan
    model, _ = g.compile(tmp_path)
    with np.errstate(invalid="ignore"):
        for result, reference in zip(model.run({"x": x}), references.values(), strict=True):
            np.testing.assert_allclose(result, reference(x), rtol=1e-5)


def test_order_of_nan_and_of_unsigned_integers(tmp_path: Path) -> None:
    """NaN is larger than any number, as it is to numpy. onnxruntime sorts neither."""
    g = Graph(x=("float32", "n", "m"), i=("uint8", "n", "m"))
    for largest in (1, 0):
        for x in "xi":
            g("TopK", x, np.array([4]), results=2, axis=1, largest=largest)
    x = np.stack([normal(7), normal(7, seed=1)])
    x[0, [2, 5]], x[1] = np.nan, [0, np.nan, -np.inf, 1, np.inf, -1, 0]
    i = (np.arange(14) * 37 % 256).astype(np.uint8).reshape(2, 7)
    onnx.save(g.build(), tmp_path / "model.onnx")
    model = abqc.compile(tmp_path / "model.onnx")
    for m in (6, 7):  # odd and even
        feeds = {"x": x[:, :m], "i": i[:, :m]}
        results = model.run(feeds)
        for number, array in enumerate((feeds["x"], feeds["i"]) * 2):
            order = np.argsort(array, axis=1, kind="stable")
            if number < 2:
                order = m - 1 - np.argsort(array[:, ::-1], axis=1, kind="stable")[:, ::-1]
            want = order[:, :4]
            np.testing.assert_array_equal(results[2 * number + 1], want)
            np.testing.assert_array_equal(
                results[2 * number], np.take_along_axis(array, want, axis=1)
            )


def test_products_of_slices(tmp_path: Path) -> None:
    """Rows that do not follow each other in memory, of sizes that are not known before."""
    g = Graph(x=("float32", "n", "m", 8))
    for cut in (([0], [-1], [1]), ([1], [4], [2]), ([0], [2], [0])):
        g("MatMul", g("Slice", "x", *map(np.array, cut)), normal(8 if cut[2] != [2] else 3, 4))
    g.check(tmp_path, *({"x": normal(n, m, 8)} for n, m in ((3, 5), (1, 2))), tolerance=1e-5)


def test_exclusive_sums(tmp_path: Path) -> None:
    """What comes before an infinity is finite."""
    g = Graph(x=("float32", "n", "m"), i=("int64", 3, "m"), j=("int32", "n", 4))
    for reverse in (0, 1):
        g("CumSum", "x", np.array(1), exclusive=1, reverse=reverse)
        g("CumSum", "i", np.array(0), exclusive=1, reverse=reverse)
        g("CumSum", "j", np.array(-1, np.int32), exclusive=1, reverse=reverse)
    x = normal(4, 5)
    x[1, 2], x[2, 3] = np.inf, -np.inf

    def feeds(n: int, m: int) -> Feeds:
        return {"x": x[:n, :m], "i": integers(3, m), "j": integers(n, 4, dtype=np.int32)}

    g.check(tmp_path, feeds(4, 5), feeds(1, 1), feeds(0, 2), tolerance=1e-5)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
