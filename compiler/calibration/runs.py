"""Segments compiled for this CPU and run over the calibration data."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from abqc.codegen.artifact import build_artifact
from abqc.codegen.isa import ALL, Isa, available, by_name, lineage
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.pipeline import stages
from abqc.compiler.recipe import Recipe
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.runtime.element_types import numpy_dtype
from abqc.runtime.environment import ISA
from abqc.runtime.model import Model, load
from abqc.runtime.tensor_spec import TensorSpec
from numpy.typing import NDArray

from .dataflow import ValueId
from .segments import SegmentModule, value_name

Array = NDArray[Any]
Feeds = Mapping[str, Array]


def compile_segment(
    segment: SegmentModule, recipe: Recipe, store: WeightStore, work: Path
) -> Model:
    """The segment, its weights in the recipe's formats, as a model on this CPU."""
    directory = Path(tempfile.mkdtemp(dir=work, prefix="segment-"))
    model = load(build_segment(segment, recipe, store, directory), verify=False)
    shutil.rmtree(directory)  # it is mapped
    return model


def build_segment(
    segment: SegmentModule, recipe: Recipe, store: WeightStore, directory: Path
) -> Path:
    """The same as a library in `directory`, which is for it alone."""
    unit = Unit(
        store=store,
        recipe=recipe,
        target=CpuTarget(isas=(own_isa(),)),
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
    return library


def own_isa() -> Isa:
    """The ISA whose kernels a library with all of them would use here."""
    isas, name = available(), ISA.get()
    if name in {isa.name for isa in ALL}:
        name = lineage(by_name(name))[-1].name
    return next((isa for isa in isas if isa.name == name), isas[0])


def token_rows(x: Array, mask: Array | None) -> NDArray[np.float32]:
    """The rows of `x` [..., K]; where rows are tokens, without those that the mask hides."""
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    if mask is None or len(rows) != mask.size:
        return rows
    return rows[mask.reshape(-1) != 0]


@dataclass(frozen=True)
class Stream:
    """What one variant of the model has computed so far, by batch, in files of `folder`.

    `inputs` are the model's, whose values lie there too; those kept are in the folder `name`.
    """

    folder: Path
    name: str
    inputs: tuple[str, ...]
    batches: int

    @staticmethod
    def of(batches: Sequence[Feeds], folder: Path) -> Stream:
        """One that has computed nothing yet. The batches are written to files."""
        inputs = tuple(dict.fromkeys(name for feeds in batches for name in feeds))
        stream = Stream(folder, "inputs", inputs, len(batches))
        (folder / "inputs").mkdir()
        for batch, feeds in enumerate(batches):
            for given, array in feeds.items():
                np.save(stream.path(given, batch), array)
        return stream

    def beside(self, name: str) -> Stream:
        """One of another variant over the same inputs."""
        (self.folder / name).mkdir()
        return replace(self, name=name)

    def value(self, name: str, batch: int) -> Array:
        """An input of the model, or a kept value."""
        array = np.asarray(np.load(self.path(name, batch), mmap_mode="r"))
        # numpy's files know no bfloat16, and have bytes in its place.
        return array.view(numpy_dtype("bfloat16")) if array.dtype == "V2" else array

    def run(
        self, model: Model, batch: int, given: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The outputs of a segment by name, from the model's inputs and kept values, but for those
        that are `given`.

        On one thread: others have theirs.
        """
        known = given or {}
        feeds = {
            spec.name: known[spec.name]
            if spec.name in known
            else _typed(self.value(spec.name, batch), spec)
            for spec in model.inputs
        }
        names = [spec.name for spec in model.outputs]
        return dict(zip(names, model.run(feeds, threads=1), strict=True))

    def values(self, computed: Mapping[str, Array], batch: int) -> Callable[[str], Array]:
        """What a batch's values are by name: `computed` ones, inputs of the model, kept ones."""
        return lambda name: computed[name] if name in computed else self.value(name, batch)

    def keep(self, id_: ValueId, batch: int, value: Array) -> None:
        np.save(self.path(value_name(id_), batch), value)

    def forget(self, id_: ValueId) -> None:
        for batch in range(self.batches):
            self.path(value_name(id_), batch).unlink(missing_ok=True)

    def file(self, name: str, batch: int) -> str:
        """Where a value of that name lies, in the folder."""
        if name in self.inputs:
            return f"inputs/{self.inputs.index(name)}.{batch}.npy"
        return f"{self.name}/{name}.{batch}.npy"

    def path(self, name: str, batch: int) -> Path:
        return self.folder / self.file(name, batch)


def _typed(array: Array, spec: TensorSpec) -> Array:
    """An array from a file, which knows no types but numpy's own."""
    return array.view(numpy_dtype(spec.dtype)) if array.dtype.kind == "V" else array
