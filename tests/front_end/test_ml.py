"""Operators of ai.onnx.ml, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import pytest
from front_end.support import check
from onnx import TensorProto, helper, numpy_helper

ML = "ai.onnx.ml"


class Tables:
    """A model of a table `x` of four f32 features and one, `i`, of integers."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def floats(self, count: int) -> list[float]:
        return self.random.standard_normal(count).astype(np.float32).tolist()

    def add(
        self,
        operator: str,
        inputs: Sequence[str] = ("x",),
        types: Sequence[int] = (TensorProto.FLOAT,),
        **attributes: Any,
    ) -> None:
        names = [f"{operator}_{len(self._nodes)}_{i}" for i in range(len(types))]
        self._nodes.append(
            helper.make_node(operator, inputs, names, name=names[0], domain=ML, **attributes)
        )
        self._outputs += [
            helper.make_tensor_value_info(name, type_, None)
            for name, type_ in zip(names, types, strict=True)
        ]

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("i", TensorProto.INT64, ["n", 3]),
        ]
        columns = numpy_helper.from_array(np.array([2, 0, 3], np.int64), "columns")
        graph = helper.make_graph(self._nodes, "tables", inputs, self._outputs, [columns])
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def feeds(self, *rows: int) -> list[dict[str, np.ndarray]]:
        return [
            {
                "x": self.random.standard_normal((n, 4)).astype(np.float32),
                "i": self.random.integers(0, 10, (n, 3)),
            }
            for n in rows
        ]


CLASSES = (TensorProto.INT64, TensorProto.FLOAT)


def test_scaling_and_encoding(tmp_path: Path) -> None:
    tables = Tables()
    tables.add("Scaler", offset=[0.5, 1, 2, 3], scale=[1.0, 2, 3, 4])
    tables.add("Scaler", offset=[0.5], scale=[2.0])
    for norm in ("MAX", "L1", "L2"):
        tables.add("Normalizer", norm=norm)
    tables.add("Imputer", imputed_value_floats=[1.0, 2, 3, 4], replaced_value_float=float("nan"))
    tables.add("Imputer", imputed_value_floats=[9.0], replaced_value_float=0.25)
    tables.add("Binarizer", threshold=0.1)
    tables.add("ArrayFeatureExtractor", ["x", "columns"])
    tables.add("FeatureVectorizer", ["x", "x"], inputdimensions=[4, 4])
    tables.add("OneHotEncoder", ["i"], cats_int64s=[0, 3, 5], zeros=1)
    tables.add(
        "LabelEncoder", ["i"],
        keys_int64s=[5, 2, 9], values_floats=[0.5, 0.2, 0.9], default_float=-3.0,
    )  # fmt: skip
    tables.add(
        "LabelEncoder", ["i"], [TensorProto.INT64],
        keys_int64s=[0, 1, 2, 3], values_int64s=[10, 11, 12, 13], default_int64=-7,
    )  # fmt: skip
    feeds = tables.feeds(7, 33)
    feeds[0]["x"][0], feeds[0]["x"][2, 1] = 0, 0.25
    check(tables.model(), feeds, tmp_path)


def test_linear_models(tmp_path: Path) -> None:
    tables = Tables()
    tables.add("LinearRegressor", coefficients=tables.floats(8), intercepts=[0.1, 0.2], targets=2)
    for transform in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"):
        tables.add(
            "LinearClassifier", types=CLASSES, coefficients=tables.floats(12),
            intercepts=[0.1, 0.2, 0.3], classlabels_ints=[4, 7, 9], post_transform=transform,
        )  # fmt: skip
    check(tables.model(), tables.feeds(5), tmp_path)


Leaf = tuple[int, int]


def _trees(
    tables: Tables, count: int, depth: int, modes: Sequence[str]
) -> tuple[dict[str, Any], list[Leaf]]:
    """Full binary trees with random comparisons, and their leaves as (tree, node)."""
    rows: list[tuple[Any, ...]] = []
    leaves = []
    for tree in range(count):
        for node in range(2 ** (depth + 1) - 1):
            if node >= 2**depth - 1:
                leaves.append((tree, node))
                rows.append((tree, node, 0, "LEAF", 0.0, 0, 0, 0))
                continue
            feature, mode = int(tables.random.integers(4)), str(tables.random.choice(modes))
            number, missing = tables.floats(1)[0], int(tables.random.integers(2))
            rows.append((tree, node, feature, mode, number, 2 * node + 1, 2 * node + 2, missing))
    names = (
        "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values",
        "nodes_truenodeids", "nodes_falsenodeids", "nodes_missing_value_tracks_true",
    )  # fmt: skip
    return {
        name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }, leaves


def _weights(tables: Tables, prefix: str, leaves: list[Leaf], ids: Sequence[int]) -> dict[str, Any]:
    return {
        f"{prefix}_treeids": [tree for tree, _ in leaves for _ in ids],
        f"{prefix}_nodeids": [node for _, node in leaves for _ in ids],
        f"{prefix}_ids": list(ids) * len(leaves),
        f"{prefix}_weights": tables.floats(len(leaves) * len(ids)),
    }


def test_trees(tmp_path: Path) -> None:
    tables = Tables()
    for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
        trees, leaves = _trees(tables, 5, 3, ["BRANCH_LEQ"])
        tables.add(
            "TreeEnsembleRegressor", n_targets=2, aggregate_function=aggregate,
            base_values=[0.5, -0.5], **trees, **_weights(tables, "target", leaves, [0, 1]),
        )  # fmt: skip
    modes = [f"BRANCH_{mode}" for mode in ("LEQ", "LT", "GT", "GTE", "EQ", "NEQ")]
    trees, leaves = _trees(tables, 4, 3, modes)
    for transform in ("NONE", "SOFTMAX", "LOGISTIC"):
        tables.add(
            "TreeEnsembleClassifier", types=CLASSES, classlabels_int64s=[1, 5, 2],
            post_transform=transform, **trees, **_weights(tables, "class", leaves, [0, 1, 2]),
        )  # fmt: skip
    for ids in ([0], [1]):
        for transform in ("NONE", "LOGISTIC"):
            weights = _weights(tables, "class", leaves, ids)
            for sign in (1, -1):
                positive = [abs(w) / 5 for w in weights["class_weights"]]
                weights["class_weights"] = [positive[0], *(sign * w for w in positive[1:])]
                tables.add(
                    "TreeEnsembleClassifier", types=CLASSES, classlabels_int64s=[0, 1],
                    post_transform=transform, **trees, **weights,
                )  # fmt: skip
    feeds = tables.feeds(9)
    check(tables.model(), feeds, tmp_path)


def test_support_vectors(tmp_path: Path) -> None:
    tables = Tables()
    for kernel in ("LINEAR", "RBF", "POLY", "SIGMOID"):
        tables.add(
            "SVMRegressor", kernel_type=kernel, kernel_params=[0.3, 0.5, 3.0], n_supports=6,
            support_vectors=tables.floats(24), coefficients=tables.floats(6), rho=[0.25],
        )  # fmt: skip
    tables.add(
        "SVMClassifier", types=CLASSES, kernel_type="RBF", kernel_params=[0.3, 0.0, 3.0],
        classlabels_ints=[3, 1, 2], vectors_per_class=[2, 1, 3],
        support_vectors=tables.floats(24), coefficients=tables.floats(12),
        rho=tables.floats(3), prob_a=[-1.0, -1.5, -2.0], prob_b=[0.1, -0.1, 0.2],
    )  # fmt: skip
    tables.add(
        "SVMClassifier", types=CLASSES, kernel_type="LINEAR", kernel_params=[0.0, 0.0, 3.0],
        classlabels_ints=[0, 1], vectors_per_class=[3, 3],
        support_vectors=tables.floats(24), coefficients=tables.floats(6), rho=[0.1],
    )  # fmt: skip
    check(tables.model(), tables.feeds(8), tmp_path, tolerance=1e-3)


def test_a_zip_map_at_the_end_is_taken_off_and_said(tmp_path: Path) -> None:
    scores = helper.make_node(
        "LinearClassifier", ["x"], ["label", "scores"], name="linear", domain=ML,
        coefficients=[1.0, -1.0], intercepts=[0.0, 0.0], classlabels_ints=[0, 1],
    )  # fmt: skip
    maps = helper.make_node(
        "ZipMap", ["scores"], ["maps"], name="zip", domain=ML, classlabels_int64s=[0, 1]
    )
    key = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, None),
        helper.make_value_info("maps", helper.make_sequence_type_proto(key)),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph([scores, maps], "classifier", [x], outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    compiled = abqc.compile(tmp_path / "model.onnx")
    labels, values = compiled.run({"x": np.array([[2.0], [-3.0]], np.float32)})
    assert labels.tolist() == [0, 1]
    assert values.tolist() == [[2.0, -2.0], [-3.0, 3.0]]
    assert any("ZipMap" in note["note"] for note in compiled.manifest["notes"])


def test_labels_that_are_strings_are_numbered_and_said(tmp_path: Path) -> None:
    tables = Tables()
    tables.add(
        "LinearClassifier", types=CLASSES, coefficients=[-1.0, 0, 0, 0, 1.0, 0, 0, 0],
        intercepts=[0.0, 0.0], classlabels_strings=["no", "yes"],
    )  # fmt: skip
    model = tables.model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(model, tmp_path / "model.onnx")
    compiled = abqc.compile(tmp_path / "model.onnx")
    feeds = {"x": np.array([[1, 0, 0, 0], [-2, 0, 0, 0]], np.float32)}
    feeds["i"] = np.zeros((2, 3), np.int64)
    labels, _ = compiled.run({spec.name: feeds[spec.name] for spec in compiled.inputs})
    assert labels.tolist() == [1, 0]
    assert any("number in [no, yes]" in note["note"] for note in compiled.manifest["notes"])


def test_strings_that_are_read_are_refused(tmp_path: Path) -> None:
    tables = Tables()
    tables.add("LabelEncoder", keys_strings=["a"], values_int64s=[1])
    onnx.save(tables.model(), tmp_path / "model.onnx")
    with pytest.raises(abqc.AbqcError, match="keys are strings"):
        abqc.compile(tmp_path / "model.onnx")
