"""Residual streams are rotated in the weights: the same outputs, and no transform at run time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
import small_transformers as small
from abqc.codegen.artifact import build_artifact
from abqc.codegen.isa import PLAIN
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import ROTATE, TIDY, stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.compiler.recipe import Recipe
from abqc.dialects.mlir import ir
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline, walk
from onnx.reference import ReferenceEvaluator


class Rotated:
    """A model after `rotate-stream`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        recipe: str | Recipe = "w4a4 rotate",
        strict: bool = False,
    ) -> None:
        self.model, self.folder = model, folder
        folder.mkdir(exist_ok=True)
        path = folder / "model.onnx"
        onnx.save(model, path)
        imported = import_model(path, work_dir=folder, keep_codes=True)
        self.module = imported.module.operation
        self.unit = Unit(
            store=imported.store,
            recipe=parse_recipe(recipe) if isinstance(recipe, str) else recipe,
            target=CpuTarget(isas=(PLAIN,)),
            node_kinds={node.name: node.kind for node in imported.nodes},
            inputs=imported.inputs,
            outputs=imported.outputs,
            strict=strict,
        )
        run_pipeline(self.module, ROTATE, self.unit)

    @property
    def marked(self) -> set[str]:
        """The products whose activations are rotated already."""
        products = walk(self.module, "abq.matmul")
        return {op.attributes["node"].value for op in products if "rotated" in op.attributes}

    @property
    def notes(self) -> list[str]:
        return [f"{note['node']}: {note['note']}" for note in self.unit.notes]

    def online(self) -> int:
        """How many transforms are left for run time."""
        run_pipeline(self.module, ("decompose-norm", TIDY, "quantize", TIDY), self.unit)
        return len(walk(self.module, "abq.hadamard"))

    def error(self) -> float:
        """The largest difference of a float run to the model, over the largest output."""
        self.unit.recipe = parse_recipe("none")
        return self.finish(stages(False).values())

    def finish(self, passes: Iterable[Sequence[str]]) -> float:
        """The same as the recipe has it, after all of `passes`."""
        rng = np.random.default_rng(0)
        feeds = {
            "ids": rng.integers(0, small.ROWS, (2, 5)),
            "x": rng.standard_normal((2, small.WIDTH, 5), np.float32),
            "image": rng.standard_normal((2, 3, 8, 8), np.float32),
        }
        feeds = {tensor.name: feeds[tensor.name] for tensor in self.unit.inputs}
        (expected,) = ReferenceEvaluator(self.model).run(None, feeds)
        for stage in passes:
            run_pipeline(self.module, stage, self.unit)
        library = self.folder / "model.so"
        module = ir.Module.parse(self.module.get_asm(), self.module.context)
        build_artifact(
            module,
            self.unit,
            library,
            partial=self.folder / "partial",
            work=self.folder,
            manifest={"model": "model", "target": "cpu"},
            progress=lambda *_: None,
            started=time.perf_counter(),
        )
        (actual,) = abqc.load(library).run(feeds)
        return float(np.abs(actual - expected).max() / np.abs(expected).max())


INSIDE = {f"{branch}.{i}.{part}" for i in range(2) for branch, parts in (
    ("attention", "qkv"), ("mlp", ["up"])) for part in parts}  # fmt: skip


@pytest.mark.parametrize("norm", ["rms", "layer", "layer spelled out"])
def test_decoders_are_the_same_rotated(norm: str, tmp_path: Path) -> None:
    rotated = Rotated(small.decoder(norm), tmp_path)
    assert rotated.marked == INSIDE | {"head"} and not rotated.notes
    assert rotated.error() < 1e-5


def test_images_are_the_same_rotated(tmp_path: Path) -> None:
    """Patches of a convolution, a class token, and a head that reads one row."""
    rotated = Rotated(small.vision(), tmp_path)
    assert rotated.marked == INSIDE | {"head"} and not rotated.notes
    assert rotated.error() < 1e-5


def test_gains_that_are_literals(tmp_path: Path) -> None:
    """Constants of up to 16 elements stand in the IR."""
    rotated = Rotated(small.decoder("layer", width=12), tmp_path)
    assert rotated.marked == INSIDE | {"head"} and not rotated.notes
    assert rotated.error() < 1e-5


@pytest.mark.parametrize(("norm", "normalized"), [("layer", True), ("rms", False)])
def test_rows_are_rotated_where_a_stream_begins_and_back_where_it_ends(
    norm: str, normalized: bool, tmp_path: Path
) -> None:
    rotated = Rotated(small.encoder(norm, normalized=normalized), tmp_path)
    assert rotated.marked == INSIDE and not rotated.notes
    assert len(walk(rotated.module, "abq.batch_matmul")) == 2
    assert rotated.error() < 1e-5


def test_a_stream_whose_mean_is_read_keeps_it(tmp_path: Path) -> None:
    rotated = Rotated(small.encoder("layer", normalized=False), tmp_path)
    assert not rotated.marked
    (note,) = rotated.notes
    assert "it reads the mean of rows" in note


def test_only_what_no_stream_brings_is_rotated_at_run_time(tmp_path: Path) -> None:
    assert Rotated(small.decoder(), tmp_path).online() == 4  # out and down of two layers


def test_nothing_is_rotated_unasked(tmp_path: Path) -> None:
    assert not Rotated(small.decoder(), tmp_path, "w4a4").marked


def test_norms_behind_the_branch_are_named(tmp_path: Path) -> None:
    rotated = Rotated(small.decoder("layer", post=True), tmp_path)
    assert not rotated.marked
    (note,) = rotated.notes
    assert "keeps the residual stream from being rotated" in note
    assert rotated.online() > 0
    with pytest.raises(RecipeError, match=r"keeps the residual stream .*"):
        Rotated(small.decoder("layer", post=True), tmp_path / "strict", strict=True)


def test_a_rotation_that_data_imply_is_not_insisted_on(tmp_path: Path) -> None:
    """It is a default; `--strict` is about what the recipe asks for."""
    recipe = parse_recipe("w4a8").with_calibration()
    rotated = Rotated(small.decoder("layer", post=True), tmp_path, recipe, strict=True)
    (note,) = rotated.notes
    assert "keeps the residual stream from being rotated" in note
    with pytest.raises(RecipeError, match=r"keeps the residual stream .*"):
        recipe = parse_recipe("w4a8 rotate").with_calibration()
        Rotated(small.decoder("layer", post=True), tmp_path / "asked", recipe, strict=True)


def test_gains_that_come_from_the_stream_prevent_it(tmp_path: Path) -> None:
    rotated = Rotated(small.decoder("adaptive"), tmp_path)
    assert not rotated.marked


def test_a_tied_head_is_stored_again_and_keeps_the_format(tmp_path: Path) -> None:
    rotated = Rotated(small.decoder(tied=True), tmp_path)
    assert "head" in rotated.marked
    (note,) = rotated.notes
    assert note.startswith("head: ") and "stored twice" in note
    assert rotated.error() < 1e-5
