"""The column of passes: every name exists, and what each stage leaves behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_models as models
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.context import make_context
from abqc.dialects.mlir import PassManager, ir, tensor
from abqc.errors import CompileError
from abqc.passes.infrastructure import (
    PASS_FILES,
    REGISTRY,
    PassFailure,
    Unit,
    available,
    run_pipeline,
)
from abqc.passes.kernels.launch import kernel_names
from abqc.passes.pipeline import run_passes
from onnx import ModelProto

PASSES = Path(__file__).parent.parent / "passes"
EMPTY = "func.func @main() { return }"


def test_every_pass_of_the_column_exists() -> None:
    ours = available()
    with make_context():
        for name in (name for passes in stages(False).values() for name in passes):
            if name not in ours:
                PassManager.parse(f"builtin.module({name})")


def test_files_passes_and_tests_carry_one_name() -> None:
    assert set(available()) == {name.replace("_", "-") for name in PASS_FILES}
    assert all(available().values())  # a line of documentation each
    for name in PASS_FILES:
        assert (PASSES / f"{name}.py").is_file()
        assert (Path(__file__).parent / "passes" / f"test_{name}.py").is_file()


def test_text_that_is_no_module_is_an_error() -> None:
    with pytest.raises(CompileError, match="cannot be parsed"):
        run_passes("func.func @main(", ["canonicalize"])


def test_a_failure_names_the_pass_and_holds_what_it_was_given() -> None:
    with pytest.raises(PassFailure, match=r"no-such-pass failed.*it ran after canonicalize") as e:
        run_passes(EMPTY, ["canonicalize", "no-such-pass"])
    assert e.value.name == "no-such-pass"
    assert "func.func @main" in e.value.before


def test_invalid_ir_names_the_pass_and_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_the_ir(module: ir.Operation, unit: Unit) -> None:
        body = module.regions[0].blocks[0].operations[0].regions[0].blocks[0]
        with ir.InsertionPoint.at_block_begin(body), ir.Location.name("the MatMul"):
            made = tensor.EmptyOp([2], ir.F32Type.get())
            tensor.CastOp(ir.RankedTensorType.get([3], ir.F32Type.get()), made)

    monkeypatch.setitem(REGISTRY, "break-the-ir", break_the_ir)
    with pytest.raises(PassFailure) as e:
        run_passes(EMPTY, ["canonicalize", "break-the-ir"])
    assert "pass break-the-ir failed: 'tensor.cast' op operand type" in str(e.value)
    assert "are cast incompatible; it ran after canonicalize (node 'the MatMul')" in str(e.value)


def test_every_step_is_dumped(tmp_path: Path) -> None:
    unit = Unit(dump_dir=tmp_path)
    run_passes(EMPTY, ["func.func(canonicalize,cse)", "resolve-dims"], unit)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "001-canonicalize.mlir",
        "002-resolve-dims.mlir",
    ]


class Staged:
    """A model on its way: counts of operations after every stage."""

    def __init__(self, proto: ModelProto, folder: Path, recipe: str = "none") -> None:
        imported = import_model(models.save(proto, folder), work_dir=folder)
        self.unit = Unit(
            store=imported.store,
            recipe=parse_recipe(recipe),
            target=CpuTarget(),
            node_kinds={node.name: node.kind for node in imported.nodes},
            inputs=imported.inputs,
            outputs=imported.outputs,
        )
        self.after: dict[str, Counter[str]] = {}
        module = imported.module
        for stage, passes in stages(False).items():
            run_pipeline(module.operation, passes, self.unit)
            self.after[stage] = _count(module.operation)
        self.kernels = kernel_names(module.operation)
        self.text = module.operation.get_asm()


def _count(module: ir.Operation) -> Counter[str]:
    names: Counter[str] = Counter()

    def visit(op: ir.Operation) -> ir.WalkResult:
        names[op.name] += 1
        return ir.WalkResult.ADVANCE

    module.walk(visit)
    return names


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return Staged(models.attention(), tmp_path_factory.mktemp("attention"), "w8a8")


def test_simplified_has_no_shape_arithmetic_in_tensors(attention: Staged) -> None:
    counts = attention.after["simplified"]
    for name in ("tensor.reshape", "tensor.extract", "tensor.from_elements", "linalg.batch_matmul"):
        assert not counts[name], name
    assert counts["abq.matmul"] == 4
    assert counts["abq.batch_matmul"] == 2


def test_quantized_packs_an_activation_once(attention: Staged) -> None:
    counts = attention.after["quantized"]
    assert counts["abq.pack"] == 2  # q, k and v share one; the output projection has its own
    assert not counts["abq.quantize"]
    assert [entry["node"] for entry in attention.unit.operations] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]


def test_host_has_buffers_and_launches_only(attention: Staged) -> None:
    counts = attention.after["host"]
    dialects = {name.split(".")[0] for name in counts}
    assert dialects <= {"arith", "builtin", "cf", "func", "memref", "scf"}
    assert "tensor<" not in attention.text
    assert counts["memref.alloc"] - counts["memref.dealloc"] == 1  # the output's stays
    assert attention.kernels == set(attention.unit.kernels) & attention.kernels


def layers(count: int) -> ModelProto:
    """`count` equal layers: a matmul, a bias, a softmax."""
    nodes, constants = [], {}
    for i in range(count):
        constants[f"w{i}"] = np.random.default_rng(i).standard_normal((16, 16), np.float32)
        nodes += [
            models.node("MatMul", f"x{i} w{i}", f"p{i}", f"matmul{i}"),
            models.node("Softmax", f"p{i}", f"x{i + 1}", f"softmax{i}", axis=-1),
        ]
    shape = ["n", 16]
    inputs, outputs = [("x0", np.float32, shape)], [(f"x{count}", np.float32, shape)]
    return models.model(nodes, inputs, outputs, constants)


def test_equal_layers_share_their_kernels(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "5").mkdir()
    one, five = (Staged(layers(n), tmp_path / str(n), "w4a8") for n in (1, 5))
    assert five.kernels == one.kernels
    assert five.after["host"]["func.call"] == 5 * one.after["host"]["func.call"]
