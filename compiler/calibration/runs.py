"""Segments compiled for this CPU and run over the calibration data."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from abqc.codegen.artifact import build_artifact
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.pipeline import stages
from abqc.compiler.recipe import Recipe
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.runtime.model import Model, load
from numpy.typing import NDArray

from .dataflow import ValueId
from .segments import SegmentModule, value_name

Array = NDArray[Any]
Feeds = Mapping[str, Array]

MASK = "attention_mask"  # [batch, tokens]: the tokens that count


def compile_segment(
    segment: SegmentModule, recipe: Recipe, store: WeightStore, work: Path
) -> Model:
    """The segment, its weights in the recipe's formats, as a model on this CPU."""
    directory = Path(tempfile.mkdtemp(dir=work, prefix="segment-"))
    unit = Unit(
        store=store,
        recipe=recipe,
        target=CpuTarget(),
        inputs=list(segment.inputs),
        outputs=list(segment.outputs),
    )
    passes = stages(on_device=False)
    run_pipeline(segment.module.operation, (*passes["quantized"], *passes["host"]), unit)
    library = directory / "segment.so"
    build_artifact(
        segment.module,
        unit,
        library,
        partial=directory / "partial.so",
        work=directory,
        manifest={},
        progress=lambda step, done, total: None,
        started=time.perf_counter(),
    )
    model = load(library, verify=False)
    shutil.rmtree(directory)  # it is mapped
    return model


def token_rows(x: Array, mask: Array | None) -> NDArray[np.float32]:
    """The rows of `x` [..., K]; where rows are tokens, without those that the mask hides."""
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    if mask is None or len(rows) != mask.size:
        return rows
    return rows[mask.reshape(-1) != 0]


class Stream:
    """What one variant of the model has computed so far: kept values, by batch, in files."""

    def __init__(self, batches: Sequence[Feeds], work: Path) -> None:
        self._batches = batches
        self._directory = Path(tempfile.mkdtemp(dir=work, prefix="stream-"))

    def __len__(self) -> int:
        return len(self._batches)

    def value(self, name: str, batch: int) -> Array:
        """An input of the model, or a kept value."""
        given = self._batches[batch]
        if name in given:
            return given[name]
        return np.asarray(np.load(self._file(name, batch), mmap_mode="r"))

    def run(self, model: Model, batch: int) -> dict[str, Array]:
        """The outputs of a segment by name, from the model's inputs and kept values."""
        feeds = {spec.name: self.value(spec.name, batch) for spec in model.inputs}
        names = [spec.name for spec in model.outputs]
        return dict(zip(names, model.run(feeds), strict=True))

    def keep(self, id_: ValueId, batch: int, value: Array) -> None:
        np.save(self._file(value_name(id_), batch), value)

    def forget(self, id_: ValueId) -> None:
        for batch in range(len(self)):
            self._file(value_name(id_), batch).unlink(missing_ok=True)

    def _file(self, name: str, batch: int) -> Path:
        return self._directory / f"{name}.{batch}.npy"
