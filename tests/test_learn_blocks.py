"""What learning needs of a model, without PyTorch: its blocks, and their functions."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.calibration.dataflow import DataFlow
from abqc.compiler.calibration.learn import require_torch
from abqc.compiler.calibration.learn.blocks import Block, blocks_of
from abqc.compiler.calibration.learn.evaluate import Evaluator, UnknownOperationError
from abqc.compiler.calibration.learn.learned import Learned
from abqc.compiler.calibration.products import Product, products_of
from abqc.compiler.calibration.runs import compile_segment
from abqc.compiler.calibration.segments import SegmentModule, cut, extract
from abqc.compiler.evaluation.metrics import relative_error
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.compiler.recipe import FLOAT
from abqc.dialects.context import make_context
from abqc.dialects.formats import parse_scheme, quantize_weight
from abqc.dialects.group_scales import Choice
from abqc.dialects.mlir import ir
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.passes.quantization.encoding import Encoding
from abqc.runtime.tensor_spec import TensorSpec
from small_transformers import decoder


@dataclass(frozen=True)
class Model:
    module: ir.Operation
    unit: Unit
    products: list[Product]
    blocks: list[Block]
    work: Path

    def part(self, block: Block) -> SegmentModule:
        outputs = [*block.outputs, *block.attention]
        return extract(self.module, self.unit.inputs, block.inputs, outputs)

    def product(self, node: str, x: Any, symbol: str, bias: Any) -> Any:
        y = x @ self.unit.store.get(symbol).T
        return y if bias is None else y + bias


def simplified(proto: onnx.ModelProto, recipe: str, work: Path) -> Model:
    path = work / "model.onnx"
    onnx.save(proto, path)
    imported = import_model(path, work_dir=work)
    unit = Unit(
        store=imported.store,
        recipe=parse_recipe(recipe),
        target=CpuTarget(),
        inputs=imported.inputs,
        node_kinds={node.name: node.kind for node in imported.nodes},
    )
    module = imported.module.operation
    run_pipeline(module, stages(on_device=False)["simplified"], unit)
    flow = DataFlow(module)
    products = products_of(flow, module, unit)
    segments = cut(flow, {product.at: product.name for product in products})
    return Model(module, unit, products, blocks_of(flow, segments, products), work)


def nodes(block: Block) -> list[str]:
    return [product.node for product in block.products]


def test_a_block_is_attention_and_the_perceptron_behind_it(tmp_path: Path) -> None:
    model = simplified(decoder(), "w4a8 gptq learn", tmp_path)
    layers, head = model.blocks[:2], model.blocks[2]
    for block in layers:
        assert len(block.attention) == 1
        assert len(block.outputs) == 1
        assert block.joining is block.products[-1]
    assert [len(block.inputs) for block in model.blocks] == [0, 1, 1]
    assert nodes(head) == [model.products[-1].node]
    assert not head.attention
    assert [p.node for p in model.products] == [n for block in model.blocks for n in nodes(block)]


def test_the_function_of_a_block_is_the_block(tmp_path: Path) -> None:
    model = simplified(decoder("layer"), "w4a4 gptq rotate learn", tmp_path)
    rng = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {"ids": rng.integers(0, 40, (2, 5))}
    wanted = [id_ for block in model.blocks for id_ in (*block.outputs, *block.attention)]
    whole = extract(model.module, model.unit.inputs, [], wanted)
    compiled = compile_segment(whole, FLOAT, model.unit.store, tmp_path)
    made = compiled.run({spec.name: values[spec.name] for spec in compiled.inputs})
    values |= dict(zip((spec.name for spec in compiled.outputs), made, strict=True))
    for block in model.blocks:
        function = Evaluator(model.part(block), np, model.unit.store.get, model.product)
        for name, found in function(values).items():
            assert relative_error(values[name], found) < 5e-6


LOOPS = """
#all = affine_map<(i, j, k) -> (i, j, k)>
#row = affine_map<(i, j, k) -> (i, 0, k)>
#column = affine_map<(i, j, k) -> (j)>
#sum = affine_map<(i, j, k) -> (k, i)>
func.func @main(%x: tensor<2x3x?xf32>, %y: tensor<2x1x?xf32>, %z: tensor<3xi64>)
    -> (tensor<?x2xf32>, tensor<?x2xf32>, tensor<2x2x?xf32>) {
  %c2 = arith.constant 2 : index
  %zero = arith.constant 0.0 : f32
  %low = arith.constant -1.0 : f32
  %d = tensor.dim %x, %c2 : tensor<2x3x?xf32>
  %empty = tensor.empty(%d) : tensor<?x2xf32>
  %first = linalg.fill ins(%zero : f32) outs(%empty : tensor<?x2xf32>) -> tensor<?x2xf32>
  %sum = linalg.generic {indexing_maps = [#all, #row, #column, #sum],
      iterator_types = ["parallel", "reduction", "parallel"]}
      ins(%x, %y, %z : tensor<2x3x?xf32>, tensor<2x1x?xf32>, tensor<3xi64>)
      outs(%first : tensor<?x2xf32>) {
    ^bb0(%a: f32, %b: f32, %n: i64, %out: f32):
      %j = linalg.index 1 : index
      %m = arith.index_cast %n : i64 to index
      %less = arith.cmpi slt, %j, %m : index
      %f = arith.sitofp %n : i64 to f32
      %p = arith.mulf %a, %f : f32
      %q = arith.addf %p, %b : f32
      %chosen = arith.select %less, %q, %low : f32
      %r = arith.addf %out, %chosen : f32
      linalg.yield %r : f32
    } -> tensor<?x2xf32>
  %constant = linalg.generic {indexing_maps = [#rowless, #rowless],
      iterator_types = ["parallel", "parallel"]}
      ins(%sum : tensor<?x2xf32>) outs(%empty : tensor<?x2xf32>) {
    ^bb0(%a: f32, %out: f32):
      %m = arith.maximumf %a, %low : f32
      linalg.yield %m : f32
    } -> tensor<?x2xf32>
  %slice = tensor.extract_slice %x[0, 1, 0] [2, 2, %d] [1, 1, 1]
      : tensor<2x3x?xf32> to tensor<2x2x?xf32>
  return %sum, %constant, %slice : tensor<?x2xf32>, tensor<?x2xf32>, tensor<2x2x?xf32>
}
""".replace("#all =", "#rowless = affine_map<(i, j) -> (i, j)>\n#all =")


def module_of(text: str, inputs: list[str], outputs: list[str]) -> SegmentModule:
    specs = [[TensorSpec(name, "float32", ()) for name in names] for names in (inputs, outputs)]
    with make_context():
        return SegmentModule(ir.Module.parse(text), *specs)


def no_product(*_: Any) -> Any:
    raise AssertionError


def test_loops_are_what_they_are_in_numpy() -> None:
    part = module_of(LOOPS, ["x", "y", "z"], ["sum", "floor", "slice"])
    function = Evaluator(part, np, no_product, no_product)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 3, 5), np.float32), rng.standard_normal((2, 1, 5), np.float32)
    z = np.array([2, 0, 7])
    found = function({"x": x, "y": y, "z": z})
    terms = x * z[None, :, None].astype(np.float32) + y
    terms = np.where((np.arange(3) < z)[None, :, None], terms, np.float32(-1))
    np.testing.assert_allclose(found["sum"], terms.sum(1).T, rtol=1e-6)
    np.testing.assert_array_equal(found["floor"], np.maximum(found["sum"], -1))
    np.testing.assert_array_equal(found["slice"], x[:, 1:])
    assert found["sum"].dtype == np.float32


def test_an_unknown_operation_is_named() -> None:
    text = """func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
      %y = math.cbrt %x : tensor<4xf32>
      return %y : tensor<4xf32>
    }"""
    with pytest.raises(UnknownOperationError, match=r"math\.cbrt"):
        Evaluator(module_of(text, ["x"], ["y"]), np, no_product, no_product)


def test_learned_scales_and_corrections_are_those_of_the_codes() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 40)).astype(np.float32)
    scheme = parse_scheme("w3:g16:asym")
    encoding = Encoding("w", scheme)
    scale = rng.uniform(0.2, 0.6, (6, 3)).astype(np.float16)
    zero = rng.integers(2, 6, (6, 3)).astype(np.uint8)
    u, v = rng.standard_normal(6, np.float32), rng.standard_normal(40, np.float32)
    found = Learned(Choice(scale, zero), (u, v)).nearest(weight, encoding)
    np.testing.assert_array_equal(found.scale, scale)
    spread = [np.repeat(each.astype(np.float32), 16, axis=1)[:, :40] for each in (scale, zero)]
    wanted = np.clip(np.rint((weight + np.outer(u, v)) / spread[0]) + spread[1], 0, 7)
    np.testing.assert_array_equal(found.codes, wanted)
    plain = Learned().nearest(weight, encoding)
    np.testing.assert_array_equal(plain.codes, quantize_weight(weight, scheme).codes)


def test_learning_without_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="needs PyTorch") as error:
        require_torch()
    assert "abqc[learn]" in str(error.value)
