"""Attention is recognized, and only what is attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from abqc.codegen.gpu.attention import spec as attention_spec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.compiler.onnx_import import import_model
from abqc.compiler.pipeline import ROTATE, SIMPLIFY
from abqc.passes import fuse_attention
from abqc.passes.infrastructure import Unit, run_pipeline
from facts import Facts, after, maker
from onnx import TensorProto, helper

TIDY = "func.func(canonicalize,cse)"
ADD = "%a = arith.addf %s, %m : f32"
NEGATIVE = "%big = arith.constant -1.0e9 : f32"


def attention(chain: str = ADD, mask: str = "?x1x1x?xf32", reads: str = "(d0, 0, 0, d3)") -> str:
    """Attention of 4 heads of 8 columns; `chain` makes %a of the score %s and the mask's %m."""
    return f"""
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#mask = affine_map<(d0, d1, d2, d3) -> {reads}>
#row = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, 0)>
func.func @main(%q: tensor<?x?x4x8xf32>, %k: tensor<?x?x4x8xf32>, %v: tensor<?x?x4x8xf32>,
    %mask: tensor<{mask}>, %b: index, %n: index) -> tensor<?x?x4x8xf32> {{
  %zero = arith.constant 0.0 : f32
  %minus = arith.constant 0xFF800000 : f32
  %half = arith.constant 0.5 : f32
  {NEGATIVE}
  %e = tensor.empty(%b, %n) : tensor<?x4x?x8xf32>
  %qt = linalg.transpose ins(%q : tensor<?x?x4x8xf32>) outs(%e : tensor<?x4x?x8xf32>)
      permutation = [0, 2, 1, 3]
  %kt = linalg.transpose ins(%k : tensor<?x?x4x8xf32>) outs(%e : tensor<?x4x?x8xf32>)
      permutation = [0, 2, 1, 3]
  %vt = linalg.transpose ins(%v : tensor<?x?x4x8xf32>) outs(%e : tensor<?x4x?x8xf32>)
      permutation = [0, 2, 1, 3]
  %qc = tensor.collapse_shape %qt [[0, 1], [2], [3]] : tensor<?x4x?x8xf32> into tensor<?x?x8xf32>
  %kc = tensor.collapse_shape %kt [[0, 1], [2], [3]] : tensor<?x4x?x8xf32> into tensor<?x?x8xf32>
  %vc = tensor.collapse_shape %vt [[0, 1], [2], [3]] : tensor<?x4x?x8xf32> into tensor<?x?x8xf32>
  %sc = "abq.batch_matmul"(%qc, %kc) {{transposed = 1 : i64}}
      : (tensor<?x?x8xf32>, tensor<?x?x8xf32>) -> tensor<?x?x?xf32>
  %se = tensor.expand_shape %sc [[0, 1], [2], [3]] output_shape [%b, 4, %n, %n]
      : tensor<?x?x?xf32> into tensor<?x4x?x?xf32>
  %es = tensor.empty(%b, %n, %n) : tensor<?x4x?x?xf32>
  %x = linalg.generic {{indexing_maps = [#id, #mask, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins(%se, %mask : tensor<?x4x?x?xf32>, tensor<{mask}>) outs(%es : tensor<?x4x?x?xf32>) {{
    ^bb0(%s: f32, %m: {mask.rsplit("x", 1)[1]}, %o: f32):
      {chain}
      linalg.yield %a : f32
  }} -> tensor<?x4x?x?xf32>
  %er = tensor.empty(%b, %n) : tensor<?x4x?x1xf32>
  %low = linalg.fill ins(%minus : f32) outs(%er : tensor<?x4x?x1xf32>) -> tensor<?x4x?x1xf32>
  %max = linalg.generic {{indexing_maps = [#id, #row],
      iterator_types = ["parallel", "parallel", "parallel", "reduction"]}}
      ins(%x : tensor<?x4x?x?xf32>) outs(%low : tensor<?x4x?x1xf32>) {{
    ^bb0(%i: f32, %o: f32):
      %r = arith.maximumf %i, %o : f32
      linalg.yield %r : f32
  }} -> tensor<?x4x?x1xf32>
  %p = linalg.generic {{indexing_maps = [#id, #row, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins(%x, %max : tensor<?x4x?x?xf32>, tensor<?x4x?x1xf32>) outs(%es : tensor<?x4x?x?xf32>) {{
    ^bb0(%i: f32, %j: f32, %o: f32):
      %d = arith.subf %i, %j : f32
      %r = math.exp %d : f32
      linalg.yield %r : f32
  }} -> tensor<?x4x?x?xf32>
  %none = linalg.fill ins(%zero : f32) outs(%er : tensor<?x4x?x1xf32>) -> tensor<?x4x?x1xf32>
  %sum = linalg.generic {{indexing_maps = [#id, #row],
      iterator_types = ["parallel", "parallel", "parallel", "reduction"]}}
      ins(%p : tensor<?x4x?x?xf32>) outs(%none : tensor<?x4x?x1xf32>) {{
    ^bb0(%i: f32, %o: f32):
      %r = arith.addf %i, %o : f32
      linalg.yield %r : f32
  }} -> tensor<?x4x?x1xf32>
  %w = linalg.generic {{indexing_maps = [#id, #row, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins(%p, %sum : tensor<?x4x?x?xf32>, tensor<?x4x?x1xf32>) outs(%es : tensor<?x4x?x?xf32>) {{
    ^bb0(%i: f32, %j: f32, %o: f32):
      %r = arith.divf %i, %j : f32
      linalg.yield %r : f32
  }} -> tensor<?x4x?x?xf32>
  %wc = tensor.collapse_shape %w [[0, 1], [2], [3]] : tensor<?x4x?x?xf32> into tensor<?x?x?xf32>
  %y = "abq.batch_matmul"(%wc, %vc) {{transposed = 0 : i64}}
      : (tensor<?x?x?xf32>, tensor<?x?x8xf32>) -> tensor<?x?x8xf32>
  %ye = tensor.expand_shape %y [[0, 1], [2], [3]] output_shape [%b, 4, %n, 8]
      : tensor<?x?x8xf32> into tensor<?x4x?x8xf32>
  %et = tensor.empty(%b, %n) : tensor<?x?x4x8xf32>
  %yt = linalg.transpose ins(%ye : tensor<?x4x?x8xf32>) outs(%et : tensor<?x?x4x8xf32>)
      permutation = [0, 2, 1, 3]
  return %yt : tensor<?x?x4x8xf32>
}}"""


def fused(text: str) -> Facts:
    """With one attention in the place of all products."""
    facts = after(text, "fuse-attention", TIDY)
    assert not facts("abq.batch_matmul")
    assert len(facts("abq.attention")) == 1
    return facts


def test_a_constant_mask_is_one_number() -> None:
    facts = fused(attention("%a = arith.addf %s, %half : f32"))
    (op,) = facts("abq.attention")
    assert str(op.attributes["mask_map"]) == "affine_map<(d0, d1, d2, d3) -> ()>"
    assert op.operands[3].type.shape == []


@pytest.mark.parametrize(("first", "second"), [(3, 1), (1, 3), (3, 9), (-(2**63), -(2**63))])
def test_keys_and_values_that_are_shared_differently_stay(first: int, second: int) -> None:
    """share-heads notes on each product how many heads share one."""
    text = attention()
    for transposed, group in ((1, first), (0, second)):
        old = f"transposed = {transposed} : i64"
        assert text.count(old) == 1
        text = text.replace(old, old + (f", group = {group} : index" if group != 1 else ""))
    facts = after(text, "fuse-attention", TIDY)
    assert len(facts("abq.batch_matmul")) == 2 and not facts("abq.attention")


def test_transposes_are_read_in_place() -> None:
    facts = after(attention(), "fuse-attention", TIDY)
    (op,) = facts("abq.attention")
    assert list(op.attributes["rows_first"]) == [1, 1, 1, 1]
    assert [maker(value) for value in op.operands] == ["argument"] * 4
    assert facts.names().count("linalg.transpose") == facts.names().count("linalg.generic") == 0


def test_values_whose_heads_are_in_the_batch_get_those_of_queries() -> None:
    """As MultiheadAttention of PyTorch has them."""
    text = (
        attention()
        .replace("%v: tensor<?x?x4x8xf32>", "%v: tensor<?x?x8xf32>")
        .replace("ins(%v : tensor<?x?x4x8xf32>)", "ins(%k : tensor<?x?x4x8xf32>)")
        .replace("(%wc, %vc)", "(%wc, %v)")
    )
    facts = fused(text)
    (op,) = facts("abq.attention")
    assert maker(op.operands[2]) == "tensor.expand_shape"
    assert str(op.operands[2].type) == "tensor<?x4x?x8xf32>"


def test_keys_in_another_order_are_transposed_to_rows() -> None:
    """[T, B, H, D] by [1, 2, 3, 0]: no order that attention reads in place."""
    text = (
        attention()
        .replace("%k: tensor<?x?x4x8xf32>", "%k: tensor<?x?x4x8xf32>, %ek: tensor<?x4x8x?xf32>")
        .replace(
            "%kt = linalg.transpose ins(%k : tensor<?x?x4x8xf32>) outs(%e : tensor<?x4x?x8xf32>)\n"
            "      permutation = [0, 2, 1, 3]",
            "%kt = linalg.transpose ins(%k : tensor<?x?x4x8xf32>) outs(%ek : tensor<?x4x8x?xf32>)"
            " permutation = [1, 2, 3, 0]",
        )
        .replace(
            "%kt [[0, 1], [2], [3]] : tensor<?x4x?x8xf32> into tensor<?x?x8xf32>",
            "%kt [[0, 1], [2], [3]] : tensor<?x4x8x?xf32> into tensor<?x8x?xf32>",
        )
        .replace("(%qc, %kc) {transposed = 1", "(%qc, %kc) {transposed = 0")
        .replace(
            "(tensor<?x?x8xf32>, tensor<?x?x8xf32>) -> tensor<?x?x?xf32>",
            "(tensor<?x?x8xf32>, tensor<?x8x?xf32>) -> tensor<?x?x?xf32>",
            1,
        )
    )
    facts = fused(text)
    (transpose,) = facts("linalg.transpose")
    assert list(transpose.attributes["permutation"]) == [1, 2, 0, 3]


def test_a_single_head_that_is_counted_among_the_rows() -> None:
    """torch-mlir collapses it so, of products of [B, 1, ., .]."""
    one = attention().replace("x4x", "x1x").replace("%b, 4,", "%b, 1,")
    facts = fused(one.replace("[[0, 1], [2], [3]]", "[[0], [1, 2], [3]]"))
    (op,) = facts("abq.attention")
    assert list(op.attributes["rows_first"]) == [1, 1, 1, 1]
    assert str(op.results[0].type) == "tensor<?x?x1x8xf32>"


def test_heads_that_are_repeated_once_are_no_axis() -> None:
    text = (
        attention()
        .replace("%v: tensor<?x?x4x8xf32>", "%v: tensor<?x1x?x4x8xf32>, %ev: tensor<?x4x1x?x8xf32>")
        .replace(
            "%vt = linalg.transpose ins(%v : tensor<?x?x4x8xf32>) outs(%e : tensor<?x4x?x8xf32>)\n"
            "      permutation = [0, 2, 1, 3]",
            "%vt = linalg.transpose ins(%v : tensor<?x1x?x4x8xf32>)"
            " outs(%ev : tensor<?x4x1x?x8xf32>) permutation = [0, 3, 1, 2, 4]",
        )
        .replace(
            "%vt [[0, 1], [2], [3]] : tensor<?x4x?x8xf32>",
            "%vt [[0, 1, 2], [3], [4]] : tensor<?x4x1x?x8xf32>",
        )
    )
    facts = fused(text)
    (op,) = facts("abq.attention")
    assert list(op.attributes["rows_first"]) == [1, 1, 1, 1]
    assert maker(op.operands[2]) == "tensor.collapse_shape" and not facts("linalg.transpose")


def test_a_mask_that_is_added_keeps_its_broadcast() -> None:
    facts = fused(attention())
    (op,) = facts("abq.attention")
    assert op.attributes["mask_kind"].value == "add"
    assert str(op.attributes["mask_map"]) == "affine_map<(d0, d1, d2, d3) -> (d0, 0, 0, d3)>"


@pytest.mark.parametrize(
    ("chain", "scale"),
    [
        ("%t = arith.mulf %s, %half : f32\n %a = arith.addf %m, %t : f32", 0.5),
        ("%t = arith.divf %s, %half : f32\n %a = arith.addf %t, %m : f32", 2.0),
        ("%a = arith.mulf %half, %s : f32", 0.5),
    ],
)
def test_scales(chain: str, scale: float) -> None:
    facts = fused(attention(chain))
    assert facts("abq.attention")[0].attributes["scale"].value == scale


def test_a_mask_that_is_computed_is_a_loop_over_its_own_axes() -> None:
    """Not over heads: 1 - mask, times a large number, and the column."""
    chain = """%c = linalg.index 3 : index
      %f = arith.index_cast %c : index to i64
      %g = arith.sitofp %f : i64 to f32
      %h = arith.addf %m, %g : f32
      %a = arith.subf %s, %h : f32"""
    facts = after(attention(chain), "fuse-attention", TIDY)
    (op,), (loop,) = facts("abq.attention"), facts("linalg.generic")
    assert str(op.attributes["mask_map"]) == "affine_map<(d0, d1, d2, d3) -> (d0, d3)>"
    assert op.operands[3].owner.operation == loop.operation
    assert "arith.negf" in facts.names()


@pytest.mark.parametrize(("fill", "kind"), [("%big", "replace"), ("%minus", "add")])
def test_where(fill: str, kind: str) -> None:
    """A finite number takes the score's place; minus infinity may be added."""
    chain = f"%a = arith.select %m, %s, {fill} : f32"
    text = attention(chain, mask="?x?xi1", reads="(d2, d3)")
    facts = after(text, "fuse-attention", TIDY)
    (op,) = facts("abq.attention")
    assert op.attributes["mask_kind"].value == kind
    assert str(op.attributes["mask_map"]) == "affine_map<(d0, d1, d2, d3) -> (d2, d3)>"


@pytest.mark.parametrize(
    "chain",
    [
        "%a = arith.mulf %s, %m : f32",
        "%t = math.tanh %s : f32\n %a = arith.addf %t, %m : f32",
        "%t = arith.addf %s, %m : f32\n %a = arith.mulf %t, %s : f32",
        "%c = arith.cmpf ogt, %s, %zero : f32\n %a = arith.select %c, %s, %big : f32",
    ],
)
def test_what_is_no_attention_stays(chain: str) -> None:
    facts = after(attention(chain), "fuse-attention", TIDY)
    assert len(facts("abq.batch_matmul")) == 2
    assert not facts("abq.attention")


def test_weights_with_another_user_stay() -> None:
    y, weights = "tensor<?x?x4x8xf32>", "tensor<?x4x?x?xf32>"
    text = attention().replace(f"-> {y} {{", f"-> ({y}, {weights}) {{", 1)
    text = text.replace(f"return %yt : {y}", f"return %yt, %w : {y}, {weights}")
    assert not after(text, "fuse-attention", TIDY)("abq.attention")


def test_as_pytorch_exports_it(tmp_path: Path) -> None:
    """The root of the scale is on q and on the transpose of k, and NaN becomes 0."""
    nodes = [
        ("Transpose", ["k"], "kt", {"perm": [0, 1, 3, 2]}),
        ("Mul", ["q", "root"], "qs", {}),
        ("Mul", ["kt", "root"], "ks", {}),
        ("MatMul", ["qs", "ks"], "s", {}),
        ("Add", ["s", "mask"], "masked", {}),
        ("Softmax", ["masked"], "p", {"axis": -1}),
        ("IsNaN", ["p"], "nan", {}),
        ("Where", ["nan", "zero", "p"], "guarded", {}),
        ("MatMul", ["guarded", "v"], "y", {}),
    ]
    shapes = {"q": ["b", 4, "m", 16], "k": ["b", 4, "t", 16], "v": ["b", 4, "t", 16]}
    shapes |= {"mask": ["b", 1, "m", "t"], "y": ["b", 4, "m", 16]}
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    graph = helper.make_graph(
        [helper.make_node(op, i, [o], name=o, **attributes) for op, i, o, attributes in nodes],
        "attention",
        [infos[name] for name in ("q", "k", "v", "mask")],
        [infos["y"]],
        [
            helper.make_tensor("root", TensorProto.FLOAT, [], [0.5]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "attention.onnx")
    facts = in_model(tmp_path / "attention.onnx", tmp_path)
    (op,) = facts("abq.attention")
    assert [maker(value) for value in op.operands] == ["argument"] * 4
    assert op.attributes["scale"].value == 0.25
    assert op.attributes["guarded"].value == 1
    assert not facts("linalg.generic") and not facts("linalg.transpose")


def test_grouped_queries_as_pytorch_exports_them(tmp_path: Path) -> None:
    """Heads of the cache are repeated by Expand; the transpose is written for three axes, between
    reshapes whose sizes come from Shape."""
    nodes = [
        ("Concat", ["past_k", "new_k"], "k", {"axis": 2}),
        ("Concat", ["past_v", "new_v"], "v", {"axis": 2}),
        ("Shape", ["q"], "q_shape", {}),
        ("Gather", ["q_shape", "zero_i"], "batch", {"axis": 0}),
        ("Shape", ["k"], "k_shape", {}),
        ("Slice", ["k_shape", "two", "three"], "t", {}),
        ("Concat", ["batch", "two", "three", "t", "columns"], "wide", {"axis": 0}),
        ("Concat", ["batch", "six", "t", "columns"], "narrow", {"axis": 0}),
        ("Unsqueeze", ["k", "two"], "k5", {}),
        ("Expand", ["k5", "wide"], "k5w", {}),
        ("Reshape", ["k5w", "narrow"], "k6", {"allowzero": 1}),
        ("Unsqueeze", ["v", "two"], "v5", {}),
        ("Expand", ["v5", "wide"], "v5w", {}),
        ("Reshape", ["v5w", "narrow"], "v6", {"allowzero": 1}),
        ("Shape", ["k6"], "k6_shape", {}),
        ("Slice", ["k6_shape", "minus_one", "far"], "last", {}),
        ("Slice", ["k6_shape", "minus_two", "minus_one"], "rows", {}),
        ("Slice", ["k6_shape", "begin", "minus_two"], "lead", {}),
        ("Concat", ["minus_one", "rows", "last"], "flat", {"axis": 0}),
        ("Concat", ["lead", "last", "rows"], "whole", {"axis": 0}),
        ("Reshape", ["k6", "flat"], "k3", {}),
        ("Transpose", ["k3"], "k3t", {"perm": [0, 2, 1]}),
        ("Reshape", ["k3t", "whole"], "kt", {}),
        ("Mul", ["q", "root"], "qs", {}),
        ("Mul", ["kt", "root"], "ks", {}),
        ("MatMul", ["qs", "ks"], "s", {}),
        ("Softmax", ["s"], "p", {"axis": -1}),
        ("MatMul", ["p", "v6"], "y", {}),
    ]
    cache, new = ["b", 2, "past", 16], ["b", 2, "m", 16]
    shapes = {"q": ["b", 6, "m", 16], "past_k": cache, "past_v": cache, "new_k": new, "new_v": new}
    outputs = {"y": ["b", 6, "m", 16], "k": ["b", 2, "t", 16], "v": ["b", 2, "t", 16]}
    numbers = {"zero_i": 0, "two": 2, "three": 3, "six": 6, "columns": 16, "minus_one": -1}
    numbers |= {"minus_two": -2, "far": 2**63 - 1, "begin": -(2**63)}
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (shapes | outputs).items()
    }
    graph = helper.make_graph(
        [helper.make_node(op, i, [o], name=o, **attributes) for op, i, o, attributes in nodes],
        "attention",
        [infos[name] for name in shapes],
        [infos[name] for name in outputs],
        [
            helper.make_tensor("root", TensorProto.FLOAT, [], [0.5]),
            *(helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in numbers.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "attention.onnx")
    facts = in_model(tmp_path / "attention.onnx", tmp_path)
    (op,) = facts("abq.attention")
    assert [maker(value) for value in op.operands] == ["argument", "tensor.concat", "tensor.concat"]
    assert not facts("linalg.generic") and not facts("linalg.transpose")


def test_the_widest_head_is_the_kernels() -> None:
    assert fuse_attention.MAX_HEAD == attention_spec.MAX_HEAD


def test_lowering_launches_by_rows_and_merges_splits() -> None:
    target = CudaTarget.named("sm_80")
    assert target is not None
    unit = Unit(target=target)
    facts = after(attention(), "fuse-attention", TIDY, "resolve-dims", "lower-abq", unit=unit)
    calls = facts.calls()
    variants = target.attention(8, 8, "add", half=False)
    names = [v.kernel.name for v in variants]
    assert [c for c in calls if c in names] == names
    assert sum("merge" in c for c in calls) == len(variants) - 1
    assert set(calls) == set(unit.kernels)


def in_model(path: Path, folder: Path, *more: str) -> Facts:
    """A real model after the passes up to fuse-attention, and `more`."""
    imported = import_model(path, work_dir=folder)
    module = imported.module
    passes = (*ROTATE, *SIMPLIFY, "fuse-attention", TIDY, *more)
    run_pipeline(module.operation, passes, Unit(inputs=imported.inputs))
    return Facts(module.operation.get_asm())


def test_minilm(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    facts = in_model(real_model("minilm-l3"), tmp_path)
    assert len(facts("abq.attention")) == 3
    assert not facts("abq.batch_matmul") and not facts("linalg.transpose")


@pytest.mark.slow
def test_smollm2(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Grouped queries are rows of one head; keys and values are the caches themselves."""
    facts = in_model(real_model("smollm2"), tmp_path)
    found = facts("abq.attention")
    assert len(found) == 30 and not facts("abq.batch_matmul")
    assert {maker(op.operands[1]) for op in found} == {"tensor.concat"}
