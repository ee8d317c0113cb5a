"""`last_logits`: the product with the vocabulary for the last token alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from abqc.compiler.driver import compile_file
from abqc.compiler.onnx_import.graph.last_logits import keep_last_logits
from abqc.compiler.onnx_import.graph.model import Model
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.onnx_import.values.constants import Constant
from abqc.errors import InputError, ModelError
from front_end.support import model_of
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

HEADER = """
lm (float[b, t, 8] x) => (float[b, t, 6] logits, float[b, t, 8] seen)
<float[8, 6] head, float[6, 8] turned, float[6] bias, float cap = {3.0}>
"""
BODIES = {
    "product": "seen = Neg(x) logits = MatMul(seen, head)",
    "epilogue": "seen = Neg(x) h = Transpose<perm = [1, 0]>(turned) y = MatMul(seen, h)"
    " b = Add(bias, y) s = Div(b, cap) r = Tanh(s) logits = Mul(r, cap)",
    "read twice": "y = MatMul(x, head) seen = MatMul(y, turned) logits = Add(y, bias)",
    "no weight": "seen = Neg(x) k = Identity(x) y = Transpose<perm = [0, 2, 1]>(k)"
    " z = MatMul(x, y) w = MatMul(z, x) logits = MatMul(w, head)",
    "input": "seen = Neg(x) logits = MatMul(x, head)",
    "read in a branch": "logits = MatMul(x, head) c = Constant<value = bool {1}>()"
    " seen = If(c) <then_branch = a () => (float[b, t, 8] s) { s = MatMul(logits, turned) },"
    " else_branch = e () => (float[b, t, 8] x2) { x2 = Neg(x) }>",
    "rows are mixed": "seen = Neg(x) y = MatMul(x, head) logits = Softmax<axis = 1>(y)",
}


def graph_of(body: str) -> Model:
    proto = model_of(f"{HEADER} {{ {body} }}")
    rng = np.random.default_rng(0)
    arrays = {
        value.name: rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in proto.graph.value_info
    }
    arrays["cap"] = np.array(3.0)
    constants = {
        name: Constant(a.shape, TensorProto.FLOAT, lambda a=a: a.astype(np.float32), name=name)
        for name, a in arrays.items()
    }
    nodes = list(proto.graph.node)
    for field in (proto.graph.node, proto.graph.initializer, proto.graph.value_info):
        del field[:]
    return Model(proto, nodes, constants, 18)


@pytest.mark.parametrize("name", BODIES)
def test_they_are_the_last_row_of_all(name: str) -> None:
    whole, last = graph_of(BODIES[name]), graph_of(BODIES[name])
    keep_last_logits(last)
    x = {"x": np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)}
    expected, seen = ReferenceEvaluator(whole.to_proto([])).run(None, x)
    got, same = ReferenceEvaluator(last.to_proto([])).run(None, x)
    np.testing.assert_allclose(got, expected[:, -1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same, seen)
    gather = next(node for node in last.nodes if node.op_type == "Gather")
    before_product = name in ("product", "epilogue", "no weight", "input")
    assert (gather.output[0] == "logits") is not before_product


def test_what_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_of("m (float[b, 4] x) => (float[b, 4] logits) { logits = Neg(x) }"), path)
    with pytest.raises(ModelError, match=r"no output 'logits' \[batch, tokens, vocabulary\]"):
        import_model(path, work_dir=tmp_path, last_logits=True)
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="calibration reads what all tokens give"):
        compile_file(path, last_logits=True, calib=samples, quant="w8a8")
