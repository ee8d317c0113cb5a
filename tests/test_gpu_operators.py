"""Operators with kernels of their own on GPUs, in the PTX machine, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.driver import compile_file
from abqc.runtime.artifact import manifest_of
from abqc.runtime.ptx.driver import PtxDriver
from operator_graph import Feeds, Graph, compare, integers, normal

onnxruntime = pytest.importorskip("onnxruntime")


def check(graph: Graph, folder: Path, *feeds: Feeds) -> Path:
    """Compile for sm_90a, run with every set of feeds, compare every output; the library."""
    onnxruntime.set_default_logger_severity(3)
    source = folder / "model.onnx"
    onnx.save(graph.build(), source)
    library = compile_file(source, target="sm_90a", output=folder / "model.so")
    model = abqc.load(library, device="ptx-vm")
    session = onnxruntime.InferenceSession(source)
    for feed in feeds:
        actual = [np.asarray(y) for y in model.run(feed)]
        assert not compare(model, session.run(None, feed), actual, 1e-5)
    return library


def kernels(library: Path) -> set[str]:
    (code,) = manifest_of(library)["gpu"]
    return set(code["kernels"])


def test_running_sums(tmp_path: Path) -> None:
    """Among them positions from a mask, as decoders compute them."""
    g = Graph(x=("float32", "n", "m"), i=("int64", "n", "m"), d=("float64", "n", 2, "m"))
    g("CumSum", "x", np.array(1), exclusive=1, reverse=1)
    g("CumSum", "x", np.array(0), reverse=1)
    mask = g("Cast", g("Greater", "i", np.array(-20)), to=onnx.TensorProto.INT64)
    places = g("Sub", g("CumSum", mask, np.array(-1)), np.array(1))
    g("Where", g("Equal", mask, np.array(0)), np.array(1), places)
    g("CumSum", "d", np.array(1), exclusive=1)

    def feeds(n: int, m: int) -> Feeds:
        return {"x": normal(n, m), "i": integers(n, m), "d": normal(n, 2, m).astype(np.float64)}

    library = check(g, tmp_path, feeds(3, 5), feeds(2, 300), feeds(1, 1), feeds(0, 2))
    assert "scan_rows_i64" in kernels(library) and "scan_columns_f32" in kernels(library)


def test_slices_are_read_by_kernels(tmp_path: Path) -> None:
    """Lines that do not follow each other in memory, of sizes that are not known before."""
    g = Graph(x=("float32", "n", "m", 8))
    part = g("Slice", "x", *map(np.array, ([1], [-1], [1])))
    g("Softmax", part)
    g("CumSum", part, np.array(2))
    g("ArgMax", part, axis=2)
    check(g, tmp_path, {"x": normal(3, 6, 8)}, {"x": normal(1, 3, 8)})


def test_largest_and_smallest(tmp_path: Path) -> None:
    g = Graph(x=("float32", "n", 9, "m"), i=("int64", "n", "m"), k=("int64", 1))
    g("TopK", "x", np.array([3]), results=2, axis=1)
    g("TopK", "i", "k", results=2, largest=0)
    values, places = g("TopK", g("Abs", "x"), np.array([4]), results=2, axis=0)
    g("Slice", places, *map(np.array, ([1], [3], [0])))
    g("Neg", values)
    for unordered in g("TopK", "x", np.array([2]), results=2, axis=1, sorted=0):
        g("ReduceSum", unordered, np.array([1]))
    g("ArgMax", g("Mul", "x", np.float32(0.5)), axis=-1)
    g("ArgMax", "x", axis=1, select_last_index=1)
    g("ArgMin", "i", axis=1, keepdims=0)
    g("ArgMin", "x", axis=1)

    def feeds(n: int, m: int, k: int) -> Feeds:
        return {"x": normal(n, 9, m), "i": integers(n, m, low=-5, high=5), "k": np.array([k])}

    library = check(g, tmp_path, feeds(4, 5, 2), feeds(4, 70, 70), feeds(5, 1, 1))
    assert {"argmax_f32_warp", "argmin_i64_block"} <= kernels(library)


def test_scatters(tmp_path: Path) -> None:
    g = Graph(
        opset=18,
        x=("float32", "n", "m"),
        rows=("int64", "k", 1),
        at=("int64", "k", 2),
        row_updates=("float32", "k", "m"),
        updates=("float32", "k"),
        b=("bool", "n", "m"),
    )
    g("ScatterND", "x", "rows", "row_updates")
    g("ScatterND", "x", "at", "updates", reduction="add")
    g("ScatterND", "x", "at", "updates", reduction="max")
    g("ScatterND", "b", "at", g("Greater", "updates", np.float32(0)))
    i = np.array([[0, 1], [2, -1]])
    g("ScatterElements", "x", i, normal(2, 2), axis=1)
    g("ScatterElements", "x", i, normal(2, 2), axis=0, reduction="mul")

    def feeds(n: int, m: int, k: int) -> Feeds:
        rows = np.random.default_rng(n).permutation(n)[:k, None]
        at = np.concatenate([rows, rows * 3 % m], 1)
        x, updates = normal(n, m), normal(k, seed=1)
        return {"x": x, "rows": rows, "at": at, "row_updates": normal(k, m, seed=2),
                "updates": updates, "b": x > 0}  # fmt: skip

    check(g, tmp_path, feeds(4, 5, 2), feeds(3, 40, 3))


def test_scatters_of_slices(tmp_path: Path) -> None:
    """Along no axis, one or two of three: each element of a slice is an update of its own."""
    g = Graph(
        18,
        x=("float32", "n", 3, 4),
        rows=("int64", "u", 1),
        updates=("float32", "u", 3, 4),
        lines=("int64", "u", 2),
        line_updates=("float32", "u", 4),
    )
    g("ScatterND", "x", "rows", "updates")
    g("ScatterND", "x", "rows", "updates", reduction="add")
    g("ScatterND", "x", "lines", "line_updates", reduction="max")
    feeds = {
        "x": normal(5, 3, 4),
        "rows": np.array([[4], [-5], [2], [4]]),
        "updates": normal(4, 3, 4, seed=1),
        "lines": np.array([[0, 2], [4, 1], [0, 2], [-1, 0]]),
        "line_updates": normal(4, 4, seed=2),
    }
    check(g, tmp_path, feeds)


def test_updates_of_one_element_keep_their_order(tmp_path: Path) -> None:
    """Sums to the bit, and the last one where they replace."""
    g = Graph(opset=18, x=("float32", "n", 3), at=("int64", "k", 1), u=("float32", "k", 3))
    g("ScatterND", "x", "at", "u", reduction="add")
    g("ScatterND", "x", "at", "u")
    x, at, u = normal(4, 3), integers(40, 1, low=-4, high=4), normal(40, 3, seed=1)
    source = tmp_path / "model.onnx"
    onnx.save(g.build(), source)
    library = compile_file(source, target="sm_90a", output=tmp_path / "model.so")
    added, replaced = abqc.load(library, device="ptx-vm").run({"x": x, "at": at, "u": u})
    sums, last = x.copy(), x.copy()
    for place, row in zip(at[:, 0], u, strict=True):
        sums[place] += row
        last[place] = row
    np.testing.assert_array_equal(added, sums)
    np.testing.assert_array_equal(replaced, last)


def test_heads_wider_than_attention_kernels(tmp_path: Path) -> None:
    """More than 256 columns: two products and a softmax."""
    g = Graph(**{x: ("float32", "b", 2, f"n{x}", 320) for x in "qkv"})
    scores = g("MatMul", "q", g("Transpose", "k", perm=[0, 1, 3, 2]))
    g("MatMul", g("Softmax", g("Mul", scores, np.float32(0.05))), "v")

    def feeds(b: int, m: int, t: int) -> Feeds:
        sizes = {"q": m, "k": t, "v": t}
        return {x: normal(b, 2, n, 320, seed=i) for i, (x, n) in enumerate(sizes.items())}

    library = check(g, tmp_path, feeds(2, 5, 7), feeds(1, 1, 9))
    assert {"softmax", "batch_matmul_transposed"} <= kernels(library)


def test_prompts_of_every_length(tmp_path: Path) -> None:
    """Rows of a head from which other kernels are taken; a causal mask, whose limits are made."""
    heads = {x: ("float32", 1, 2, n, 64) for x, n in zip("qkv", "mtt", strict=True)}
    g = Graph(**heads, mask=("float32", 1, 1, "m", "t"))
    scores = g("MatMul", "q", g("Transpose", "k", perm=[0, 1, 3, 2]))
    scores = g("Add", g("Mul", scores, np.float32(0.125)), "mask")
    g("MatMul", g("Softmax", scores), "v")
    source = tmp_path / "model.onnx"
    onnx.save(g.build(), source)
    library = compile_file(source, target="sm_90a", output=tmp_path / "model.so")
    assert any(name.startswith("attention_wgmma") for name in kernels(library))
    model, session = abqc.load(library, device="ptx-vm"), onnxruntime.InferenceSession(source)
    for m, t in ((9, 70), (100, 130)):
        feed: Feeds = {
            x: normal(1, 2, n, 64, seed=n) for x, n in zip("qkv", (m, t, t), strict=True)
        }
        hidden = np.arange(t) > np.arange(m)[:, None] + t - m
        mask = np.where(hidden, np.finfo(np.float32).min, 0).astype(np.float32)
        feed["mask"] = mask[None, None]
        (actual,), (expected,) = model.run(feed), session.run(None, feed)
        np.testing.assert_allclose(actual, expected, atol=5e-5)


def test_prompts_read_halves_where_they_are(tmp_path: Path) -> None:
    """A model of f16, with products of f16: keys and values by tensor maps that the shim makes; no
    keys at all."""
    stored = dict.fromkeys("kv", ("float16", 1, 2, "t", 64))
    g = Graph(x=("float16", "m", 32), **stored)
    columns = g("MatMul", "x", (normal(32, 128, seed=1) / 8).astype(np.float16))
    split = g("Reshape", columns, np.array([1, -1, 2, 64]))
    queries = g("Transpose", split, perm=[0, 2, 1, 3])
    scores = g("MatMul", queries, g("Transpose", "k", perm=[0, 1, 3, 2]))
    g("MatMul", g("Softmax", g("Mul", scores, np.float16(0.125))), "v")
    source = tmp_path / "model.onnx"
    onnx.save(g.build(), source)
    library = compile_file(source, quant="w8a16", target="sm_90a", output=tmp_path / "model.so")
    launches: list[str] = []
    driver = PtxDriver((9, 0), progress=lambda name, _: launches.append(name))
    model, session = abqc.load(library, device=driver), onnxruntime.InferenceSession(source)
    for m, t in ((66, 70), (65, 0)):
        del launches[:]
        sizes = {"x": (m, 32), "k": (1, 2, t, 64), "v": (1, 2, t, 64)}
        feed: Feeds = {x: normal(*sizes[x], seed=i).astype(np.float16) for i, x in enumerate(sizes)}
        (actual,), (expected,) = model.run(feed), session.run(None, feed)
        np.testing.assert_allclose(actual, expected, atol=2e-2)
        attention = [name for name in launches if name.startswith("attention")]
        assert attention == ["attention_wgmma_f16_d64_e64_k_f16_v_f16"]
