"""Handmade hostile models: each with the node that the one line of its error names, if one is to
blame, and a word of that line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model, node

_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
_X = ("x", np.float32, ["n", 4])
_Y = ("y", np.float32, ["n", 4])


@dataclass(frozen=True)
class Hostile:
    """`write` puts the model into a folder. `node`: whom the error names; `word`: what it says."""

    write: Callable[[Path], Path]
    node: str | None = None
    word: str = ""


MODELS: dict[str, Hostile] = {}


def _add(name: str, proto: onnx.ModelProto, node: str | None = None, word: str = "") -> None:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    assert name not in MODELS
    MODELS[name] = Hostile(write, node, word)


def _one(
    op_type: str,
    inputs: str = "x",
    constants: dict[str, np.ndarray] | None = None,
    *,
    given: list[Any] | None = None,
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    made = node(op_type, inputs, "y", "culprit", **attributes)
    return model([made], given or [_X], [_Y], constants, opset)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# Graphs whose wires are wrong.
_add("cycle", model([node("Relu", "b", "a", "first"), node("Relu", "a", "b", "second"),
                     node("Add", "x b", "y", "third")], [_X], [_Y]), "first", "b")  # fmt: skip
_add("reads_itself", model([node("Add", "x y", "y", "culprit")], [_X], [_Y]), "culprit")
_add("made_by_nobody", model([node("Add", "x ghost", "y", "culprit")], [_X], [_Y]), "culprit",
     "ghost")  # fmt: skip
_add("made_twice", model([node("Relu", "x", "y", "one"), node("Abs", "x", "y", "culprit")], [_X],
                         [_Y]), "culprit", "y")  # fmt: skip
_add("output_made_by_nobody", model([node("Relu", "x", "z")], [_X], [_Y]), None, "y")
_add("no_inputs_for_node", _one("Relu", ""), "culprit")
_add("too_few_inputs", _one("MatMul", "x"), "culprit")
_add("too_many_inputs", _one("Relu", "x x x"), "culprit")
_add("missing_middle", _one("Clip", "_ x"), "culprit")
_add("unknown_operator", _one("Frobnicate"), "culprit", "Frobnicate")
_add("unknown_domain", _one("Relu", domain="com.example"), "culprit", "com.example")


# Types and shapes that contradict each other.
_add("types_differ", model([node("Add", "x i", "y", "culprit")], [_X, ("i", np.int64, ["n", 4])],
                           [_Y]), "culprit")  # fmt: skip
_add("shapes_differ", model([node("Add", "x z", "y", "culprit")],
                            [("x", np.float32, [3, 4]), ("z", np.float32, [3, 5])], [_Y]),
     "culprit")  # fmt: skip
_add("matmul_sizes", _one("MatMul", "x w", {"w": np.ones((5, 2), np.float32)}), "culprit")
_add("declared_output_type", model([node("Relu", "x", "y", "culprit")], [_X],
                                   [("y", np.int64, ["n", 4])]), None, "y")  # fmt: skip
_add("concat_ranks", model([node("Concat", "x z", "y", "culprit", axis=0)],
                           [_X, ("z", np.float32, ["n"])], [_Y]), "culprit")  # fmt: skip
_add("not_of_floats", _one("Not"), "culprit")
_add("gather_by_floats", _one("Gather", "x x"), "culprit")
_add("reshape_to_floats", _one("Reshape", "x s", {"s": np.float32([4, -1])}), "culprit")
_add("where_of_floats", _one("Where", "x x x"), "culprit")

# Attributes.
_add("axis_beyond", _one("Softmax", axis=7), "culprit", "7")
_add("axis_far_below", _one("Concat", "x x", axis=-(2**62)), "culprit")
_add("perm_twice", _one("Transpose", perm=[0, 0]), "culprit")
_add("perm_short", _one("Transpose", perm=[0]), "culprit")
_add("axis_is_text", _one("Softmax", axis="one"), "culprit", "axis")
_add("axis_missing", _one("Concat", "x x"), "culprit", "axis")
_add("equation_broken", _one("Einsum", "x x", equation="ij,jk->->ik"), "culprit")
_add("equation_of_other_rank", _one("Einsum", "x", equation="ijk->i"), "culprit")
_add("cast_to_nowhere", _one("Cast", to=777), "culprit", "777")
_add("cast_to_text", _one("Cast", to=TensorProto.STRING), "culprit")
_IMAGE = ("x", np.float32, [1, 4, 8, 8])
for _name, _attributes in {
    "kernel_zero": {"kernel_shape": [0, 0]},
    "kernel_negative": {"kernel_shape": [-3, 3]},
    "kernel_huge": {"kernel_shape": [2**40, 2**40]},
    "stride_zero": {"kernel_shape": [2, 2], "strides": [0, 1]},
    "stride_negative": {"kernel_shape": [2, 2], "strides": [-1, 1]},
    "pads_huge": {"kernel_shape": [2, 2], "pads": [2**62, 0, 0, 0]},
    "pads_few": {"kernel_shape": [2, 2], "pads": [1]},
    "kernel_rank": {"kernel_shape": [2]},
    "auto_pad_unknown": {"kernel_shape": [2, 2], "auto_pad": "SAME_SIDEWAYS"},
}.items():
    _add(_name, _one("MaxPool", "x", given=[_IMAGE], **_attributes), "culprit")
_W = {"w": np.ones((4, 2, 3, 3), np.float32)}
_add("group_zero", _one("Conv", "x w", _W, given=[_IMAGE], group=0), "culprit")
_add("group_uneven", _one("Conv", "x w", _W, given=[_IMAGE], group=3), "culprit")
_add("conv_channels", _one("Conv", "x w", _W, given=[_IMAGE]), "culprit")
_add("dilation_zero", _one("Conv", "x w", _W, given=[_IMAGE], group=2, dilations=[0, 0]), "culprit")
_add("block_zero", _one("DepthToSpace", given=[_IMAGE], blocksize=0), "culprit")
_add("split_sum", _one("Split", "x s", {"s": _ints(9)}, axis=1), "culprit")

# Sizes beyond all memory.
_add("reshape_two_open", _one("Reshape", "x s", {"s": _ints(-1, -1)}), "culprit")
_add("reshape_uneven", _one("Reshape", "x s", {"s": _ints(3, 5)},
                            given=[("x", np.float32, [2, 4])]), "culprit")  # fmt: skip
_add("reshape_overflow", _one("Reshape", "x s", {"s": _ints(2**62, 2**62)}), "culprit")
_add("reshape_negative", _one("Reshape", "x s", {"s": _ints(-7, 4)}), "culprit")
_add("expand_huge", _one("Expand", "x s", {"s": _ints(2**40, 1, 4)}), None, "memory")
_add("tile_huge", _one("Tile", "x s", {"s": _ints(2**40, 2**40)}), "culprit")
_add("tile_negative", _one("Tile", "x s", {"s": _ints(-1, 1)}), "culprit")
_add("fill_huge", _one("ConstantOfShape", "s", {"s": _ints(2**40, 2**30)}), "culprit")
_add("fill_negative", _one("ConstantOfShape", "s", {"s": _ints(-5)}), "culprit")
_add("range_huge", _one("Range", "a b c", {"a": np.int64(0), "b": np.int64(2**62),
                                          "c": np.int64(1)}), "culprit")  # fmt: skip
_add("range_step_zero", _one("Range", "a b c", {"a": np.int64(0), "b": np.int64(9),
                                               "c": np.int64(0)}), "culprit")  # fmt: skip
_add("pad_huge", _one("Pad", "x p", {"p": _ints(0, 2**62, 0, 2**62)}), "culprit")
_add("pad_below_nothing", _one("Pad", "x p", {"p": _ints(0, -9, 0, 0)}), "culprit")
_add("slice_step_zero", _one("Slice", "x a b c d", {"a": _ints(0), "b": _ints(2), "c": _ints(0),
                                                    "d": _ints(0)}), "culprit")  # fmt: skip
_add("one_hot_huge", _one("OneHot", "i d v", {"d": np.int64(2**62), "v": np.float32([0, 1])},
                          given=[("i", np.int64, ["n"])]), "culprit")  # fmt: skip
_add("top_k_beyond", _one("TopK", "x k", {"k": _ints(9)}, axis=1), "culprit")
_add("gather_beyond", _one("Gather", "x i", {"i": _ints(4)}, axis=1), "culprit", "out of range")
_add("input_huge", model([node("Relu", "x", "y", "culprit")],
                         [("x", np.float32, [2**40, 2**40])], [("y", np.float32, ["a", "b"])]),
     None, "x")  # fmt: skip


def _mutated(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    proto = _one("Add", "x w", {"w": np.ones((4,), np.float32)})
    change(proto)
    return proto


# What only a hex editor writes.
_add("no_opset", _mutated(lambda m: m.ClearField("opset_import")), None, "operator set")
_add("opset_zero", _mutated(lambda m: m.opset_import[0].__setattr__("version", 0)), None, "opset")
_add("opset_future", _mutated(lambda m: m.opset_import[0].__setattr__("version", 999)), None, "999")
_add("opset_negative", _mutated(lambda m: m.opset_import[0].__setattr__("version", -3)), None, "-3")
_add("no_graph", _mutated(lambda m: m.ClearField("graph")), None, "graph")
_add("no_outputs", _mutated(lambda m: m.graph.ClearField("output")), None, "output")
_add("weights_cut", _mutated(lambda m: m.graph.initializer[0].__setattr__("raw_data", b"\0" * 7)),
     None, "w")  # fmt: skip
_add("weights_of_no_type", _mutated(lambda m: m.graph.initializer[0].__setattr__("data_type", 99)),
     None, "w")  # fmt: skip
_add("weights_negative", _mutated(lambda m: m.graph.initializer[0].dims.__setitem__(0, -4)), None,
     "w")  # fmt: skip
_add("weights_huge", _mutated(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**60)), None,
     "w")  # fmt: skip
_add("input_of_no_type", _mutated(lambda m: m.graph.input[0].ClearField("type")), None, "x")
_add("input_of_text", _mutated(
    lambda m: m.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.STRING)),
    None, "x")  # fmt: skip
_add("input_without_rank", _mutated(
    lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")), None, "x")  # fmt: skip
_add("inputs_of_one_name", _mutated(lambda m: m.graph.input.extend(list(m.graph.input))), None, "x")
_add("weights_of_one_name", _mutated(
    lambda m: m.graph.initializer.extend(list(m.graph.initializer))), None, "w")  # fmt: skip
_add("names_of_control_characters", _mutated(
    lambda m: m.graph.node[0].input.__setitem__(1, "g\nh\0st")), "culprit")  # fmt: skip


def _external(location: str, **entries: str) -> Hostile:
    def write(folder: Path) -> Path:
        proto = _one("Add", "x w", {"w": np.ones((4,), np.float32)})
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)
        (folder.parent / "outside.bin").write_bytes(b"\0" * 64)
        (folder / "inside.bin").write_bytes(b"\0" * 64)
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return Hostile(write, None, "w")


MODELS |= {
    "external_above": _external("../outside.bin"),
    "external_absolute": _external("/etc/passwd"),
    "external_link": _external("link.bin"),
    "external_missing": _external("ghost.bin"),
    "external_folder": _external("."),
    "external_offset_beyond": _external("inside.bin", offset="60"),
    "external_offset_negative": _external("inside.bin", offset="-4"),
    "external_offset_text": _external("inside.bin", offset="four"),
    "external_length_huge": _external("inside.bin", length=str(2**62)),
    "external_name_empty": _external(""),
    "external_nul": _external("in\0side.bin"),
}


def _constant_above(folder: Path) -> Path:
    """External data of a Constant node, which once was read relative to the working directory."""
    tensor = TensorProto(name="value", data_type=_FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.bin")
    (folder.parent / "outside.bin").write_bytes(b"\0" * 16)
    nodes = [node("Constant", "", "c", "culprit", value=tensor), node("Add", "x c", "y", "add")]
    path = folder / "model.onnx"
    path.write_bytes(model(nodes, [_X], [_Y]).SerializeToString())
    return path


MODELS["external_of_constant"] = Hostile(_constant_above, None, "outside")


# Subgraphs and functions.
def _graph(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
    infos = [[helper.make_tensor_value_info(*v) for v in values] for values in (inputs, outputs)]
    return helper.make_graph(nodes, "body", *infos)


_CONDITION = {"c": np.array(True)}
_GIVEN = [_X, ("b", np.bool_, [])]


def _branches(then: onnx.GraphProto, other: onnx.GraphProto, condition: str = "b") -> Any:
    made = node("If", condition, "y", "culprit", then_branch=then, else_branch=other)
    return model([made], _GIVEN, [_Y], opset=21)


_RELU = _graph([node("Relu", "x", "t", "inner")], [], [("t", _FLOAT, ["n", 4])])
_add(
    "branch_reads_nothing",
    _branches(_graph([node("Add", "x ghost", "t", "inner")], [], [("t", _FLOAT, None)]), _RELU),
    "inner",
)
_add(
    "branch_gives_nothing",
    _branches(_graph([node("Relu", "x", "u", "inner")], [], [("t", _FLOAT, None)]), _RELU),
    "culprit",
)
_add(
    "branch_reads_other_branch",
    _branches(_RELU, _graph([node("Relu", "t", "u", "inner")], [], [("u", _FLOAT, None)])),
    "inner",
)
_add(
    "branch_types_differ",
    _branches(
        _RELU, _graph([node("Cast", "x", "u", "inner", to=_INT64)], [], [("u", _INT64, None)])
    ),
    "culprit",
)
_add("branch_counts_differ", _branches(_RELU, _graph([], [], [])), "culprit")
_add("condition_is_float", _branches(_RELU, _RELU, "x"), "culprit")
_add("subgraph_missing", model([node("If", "b", "y", "culprit", then_branch=_RELU)], _GIVEN, [_Y]),
     "culprit")  # fmt: skip
_BODY_IN = [("i", _INT64, []), ("c", _BOOL, []), ("s", _FLOAT, ["n", 4])]


def _loop(body: onnx.GraphProto, inputs: str = "m _ x") -> onnx.ModelProto:
    made = node("Loop", inputs, "y", "culprit", body=body)
    return model([made], [_X], [_Y], {"m": np.array(3, np.int64)})


_add(
    "loop_body_gives_less",
    _loop(_graph([node("Relu", "s", "t", "inner")], _BODY_IN, [("t", _FLOAT, None)])),
    "culprit",
)
_add(
    "loop_state_changes_type",
    _loop(
        _graph(
            [node("Cast", "s", "t", "inner", to=_INT64)],
            _BODY_IN,
            [("c", _BOOL, []), ("t", _INT64, None)],
        )
    ),
    "culprit",
)
_add(
    "loop_body_takes_less",
    _loop(
        _graph(
            [node("Relu", "x", "t", "inner")],
            _BODY_IN[:1],
            [("i", _INT64, []), ("t", _FLOAT, None)],
        )
    ),
    "culprit",
)
_add(
    "loop_count_is_float",
    _loop(
        _graph(
            [node("Relu", "s", "t", "inner")], _BODY_IN, [("c", _BOOL, []), ("t", _FLOAT, None)]
        ),
        "x _ x",
    ),
    "culprit",
)


def _functions(*calls: tuple[str, str]) -> onnx.ModelProto:
    """Functions by name, each of which calls another."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    made = [
        helper.make_function("own", name, ["a"], ["b"],
                             [helper.make_node(callee, ["a"], ["b"], domain="own")], opsets)
        for name, callee in calls
    ]  # fmt: skip
    nodes = [node(calls[0][0], "x", "y", "culprit", domain="own")]
    return model(nodes, [_X], [_Y], functions=made, domains=["own"], opset=21)


_add("function_calls_itself", _functions(("F", "F")), None, "F")
_add("functions_in_a_circle", _functions(("F", "G"), ("G", "H"), ("H", "F")), None, "calls itself")
_add("function_of_nobody", _functions(("F", "Ghost")), None, "Ghost")
_add("billion_laughs", model(
    [node("F0", "x", "y", "culprit", domain="own")], [_X], [_Y], domains=["own"], opset=21,
    functions=[
        helper.make_function(
            "own", f"F{i}", ["a"], ["k"],
            [helper.make_node(f"F{i + 1}" if i < 39 else "Neg", ["a" if j == 0 else f"k{j}"],
                              ["k" if j == 3 else f"k{j + 1}"], domain="own" if i < 39 else "")
             for j in range(4)],
            [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)])
        for i in range(40)
    ]))  # fmt: skip


def text_files() -> dict[str, bytes]:
    """Files that are no models."""
    good = _one("Relu").SerializeToString()
    return {
        "empty": b"",
        "text": b"#!/bin/sh\nexit 1\n",
        "zeros": b"\0" * 4096,
        "half": good[: len(good) // 2],
        "random": np.random.default_rng(0).integers(0, 256, 999, np.uint8).tobytes(),
        "tensor": numpy_helper.from_array(np.ones(3)).SerializeToString(),
    }
