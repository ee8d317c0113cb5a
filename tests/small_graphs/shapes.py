"""Sizes that are computed: reshapes, attention heads, grids."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from .graph import Graph, graph, ints, node, normal, scalar


def _heads(count: int, name: str) -> list[onnx.NodeProto]:
    """Sizes b and t of x, and the shape [b, t, count, 64] under `name`."""
    return [
        node("Shape", "x", "s"),
        node("Gather", "s i0", "b"),
        node("Gather", "s i1", "t"),
        node("Unsqueeze", "b ax", "b1"),
        node("Unsqueeze", "t ax", "t1"),
        node("Concat", f"b1 t1 heads{count}", name, axis=0),
    ]


def attention_heads() -> dict[str, Graph]:
    """Heads by Reshape to [b, s, -1, 64] ran as plain loops, 7 times slower than with a number."""
    graphs = {}
    for count in (-1, 3):
        constants = {f"w{k}": normal(192, 192, scale=0.05, seed=i) for i, k in enumerate("qkv")}
        constants |= {"i0": scalar(0), "i1": scalar(1), "ax": ints(0), "scale": np.float32(0.125)}
        constants |= {f"heads{count}": ints(count, 64)}
        nodes = _heads(count, "sh")
        for k, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            nodes += [
                node("MatMul", f"x w{k}", f"{k}0"),
                node("Reshape", f"{k}0 sh", f"{k}1"),
                node("Transpose", f"{k}1", f"{k}2", perm=perm),
            ]
        nodes += [
            node("Mul", "q2 scale", "q3"),
            node("MatMul", "q3 k2", "a"),
            node("Softmax", "a", "p", axis=-1),
            node("MatMul", "p v2", "o"),
            node("Transpose", "o", "y", perm=[0, 2, 1, 3]),
        ]
        feeds = [{"x": normal(b, 197, 192)} for b in (1, 2)]
        x = [("x", np.float32, ["b", 197, 192])]
        graphs[f"heads_{count}".replace("-", "minus_")] = graph(nodes, x, "y", constants, feeds)
    return graphs


def reshape_merge_split() -> dict[str, Graph]:
    """Reshape of [b, s, 8] to [-1, 8] gave (3, 8) for 3x4x8, silently."""
    constants = {
        "flat": ints(-1, 8), "n": ints(8), "i0": scalar(0), "i1": scalar(1), "ax": ints(0),
        "heads8": ints(8),
    }  # fmt: skip
    sizes = [
        node("Shape", "x", "b", start=0, end=1),
        node("Shape", "x", "s", start=1, end=2),
        node("Concat", "b s n", "sh", axis=0),
    ]
    merge = node("Reshape", "x flat", "x2")
    bodies = {
        "merge": [node("Reshape", "x flat", "y")],
        "merge_split": [*sizes, merge, node("Reshape", "x2 sh", "y")],
        "merge_split_shape": [
            merge,
            node("Relu", "x2", "x3"),
            node("Shape", "x", "sh"),
            node("Reshape", "x3 sh", "y"),
        ],
        "merge_split_gather": [
            merge,
            node("Relu", "x2", "x3"),
            *_heads(8, "sh"),
            node("Reshape", "x3 sh", "y"),
        ],
    }
    feeds = [{"x": normal(3, 4, 8)}, {"x": normal(1, 7, 8)}]
    x = [("x", np.float32, ["b", "s", 8])]
    return {f"reshape_{k}": graph(v, x, "y", constants, feeds) for k, v in bodies.items()}


def reshape_with_open_axis() -> dict[str, Graph]:
    """Other places of the -1, and targets that take sizes apart, on dynamic sizes."""
    targets = {
        "2_open_2": ([2, -1, 2], [(2, 6), (4, 3)]),
        "4_open": ([4, -1], [(2, 6), (4, 3)]),
        "1_open_8": ([1, -1, 8], [(2, 8), (4, 6)]),
        "open_2": ([-1, 2], [(2, 6), (4, 3)]),
        "zero_open": ([0, -1, 1], [(2, 6), (4, 3)]),
        "open": ([-1], [(2, 6), (0, 3)]),
    }
    x = [("x", np.float32, ["b", "s"])]
    return {
        f"reshape_{name}": graph(
            [node("Reshape", "x to", "y")],
            x,
            "y",
            {"to": ints(*target)},
            [{"x": normal(*shape)} for shape in shapes],
        )
        for name, (target, shapes) in targets.items()
    }


def gemm_between_reshapes() -> dict[str, Graph]:
    """GPT-2's Conv1D: the sizes of the second Reshape come from the model's inputs."""
    constants = {
        "W": normal(8, 24, scale=0.1), "B": normal(24, scale=0.1), "flat": ints(-1, 8),
        "n": ints(24),
    }  # fmt: skip
    first = [node("Shape", "x", "b", start=0, end=1)]
    own = [*first, node("Shape", "x", "s", start=1, end=2)]
    other = [*first, node("Shape", "m", "s", start=1, end=2)]
    tail = [
        node("Concat", "b s n", "sh", axis=0),
        node("Reshape", "x flat", "x2"),
        node("Gemm", "x2 W B", "g", "gemm"),
        node("Reshape", "g sh", "y", "back"),
    ]
    x = ("x", np.float32, ["b", "s", 8])
    m = ("m", np.int64, ["b", "s"])
    plain = [{"x": normal(3, 4, 8)}, {"x": normal(2, 1, 8)}]
    masked = [feed | {"m": np.ones(feed["x"].shape[:2], np.int64)} for feed in plain]
    turned = [node("Transpose", "x0", "x", perm=[2, 0, 1, 3])]
    x0 = ("x0", np.float32, ["n", 2, "s", 4])
    # As nn.MultiheadAttention: what is flattened is a transpose, [s, n, 2, 4] to [-1, 8].
    permuted = [{"x0": normal(3, 2, 5, 4)}, {"x0": normal(1, 2, 2, 4)}]
    return {
        "gemm_own": graph(own + tail, [x], "y", constants, plain),
        "gemm_other": graph(other + tail, [x, m], "y", constants, masked),
        "gemm_permuted": graph(turned + own + tail, [x0], "y", constants, permuted),
    }


def meshgrid() -> dict[str, Graph]:
    """YOLOv8's anchors: Range, Reshape, Expand, stack, Reshape to [-1, 2]."""
    constants = {
        "i2": scalar(2), "i3": scalar(3), "z": np.float32(0), "o": np.float32(1),
        "half": np.float32(0.5), "col": ints(-1, 1), "row": ints(1, -1), "ax": ints(-1),
        "flat": ints(-1, 2),
    }  # fmt: skip
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s i2", "hh"),
        node("Gather", "s i3", "ww"),
        node("Cast", "hh", "hf", to=TensorProto.FLOAT),
        node("Cast", "ww", "wf", to=TensorProto.FLOAT),
        node("Range", "z wf o", "rx0"),
        node("Range", "z hf o", "ry0"),
        node("Add", "rx0 half", "rx"),
        node("Add", "ry0 half", "ry"),
        node("Shape", "ry", "sy"),
        node("Shape", "rx", "sx"),
        node("Concat", "sy sx", "hw", axis=0),
        node("Reshape", "ry col", "yc"),
        node("Reshape", "rx row", "xc"),
        node("Expand", "yc hw", "gy"),
        node("Expand", "xc hw", "gx"),
        node("Unsqueeze", "gx ax", "ux"),
        node("Unsqueeze", "gy ax", "uy"),
        node("Concat", "ux uy", "g", axis=-1),
        node("Reshape", "g flat", "out"),
    ]
    feeds = [{"x": normal(1, 3, 4, 5)}, {"x": normal(2, 3, 3, 1)}]
    x = [("x", np.float32, ["n", 3, "h", "w"])]
    return {"meshgrid": graph(nodes, x, "out", constants, feeds)}


def unsqueezed_range() -> dict[str, Graph]:
    """Range over a computed length, the length being the length of an input, failed when run."""
    graphs = {}
    forms = {"resample": (160, 440, 441), "half": (1, 1, 2), "twice": (2, 0, 1), "same": (1, 0, 1)}
    for name, (num, add, den) in forms.items():
        constants = {
            "num": scalar(num), "add": scalar(add), "den": scalar(den), "z": scalar(0),
            "o": scalar(1), "ax": ints(0),
        }  # fmt: skip
        nodes = [
            node("Shape", "x", "s", start=1, end=2),
            node("Squeeze", "s", "n"),
            node("Mul", "num n", "a"),
            node("Add", "a add", "b"),
            node("Div", "b den", "len"),
            node("Range", "z len o", "r"),
            node("Unsqueeze", "r ax", "y"),
        ]
        x = [("x", np.float32, ["b", "n"])]
        feeds = [{"x": normal(1, n)} for n in (7, 441, 1)]
        graphs[f"range_{name}"] = graph(nodes, x, "r y", constants, feeds, dtype=np.int64)
    return graphs


def computed_pads() -> dict[str, Graph]:
    """Pads computed from a size, then a Reshape to rows (a pitch model): refused."""
    constants = {
        "i1": scalar(1), "i0": scalar(0), "c256": scalar(256), "c255": scalar(255), "ax": ints(0),
        "z3": ints(0, 0, 0), "front": ints(0, 512, 0), "back": ints(0, 0, 0, 512),
        "both": ints(0, 512, 0, 512), "rows": ints(-1, 256),
    }  # fmt: skip
    computed = [
        node("Shape", "x", "s"),
        node("Gather", "s i1", "n"),
        node("Sub", "c256 n", "d"),
        node("Max", "d i0", "d0"),
        node("Unsqueeze", "d0 ax", "d1"),
        node("Concat", "z3 d1", "p0", axis=0),
        node("Pad", "x p0", "x1"),
        node("Max", "n c256", "m"),
        node("Add", "m c255", "m1"),
        node("Div", "m1 c256", "m2"),
        node("Mul", "m2 c256", "m3"),
        node("Sub", "m3 m", "e"),
        node("Unsqueeze", "e ax", "e1"),
        node("Concat", "front e1", "p1", axis=0),
        node("Add", "p1 back", "p"),
        node("Pad", "x1 p", "x2"),
        node("Reshape", "x2 rows", "y"),
    ]
    fixed = [node("Pad", "x both", "x2"), node("Reshape", "x2 rows", "y")]
    x = [("x", np.float32, [1, "n"])]
    feeds = [{"x": normal(1, n)} for n in (100, 256, 700)]
    even = [{"x": normal(1, n)} for n in (256, 512)]
    return {
        "pad_computed": graph(computed, x, "y", constants, feeds, opset=18),
        "pad_then_rows": graph(fixed, x, "y", constants, even, opset=18),
    }
