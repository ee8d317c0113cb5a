"""onnxruntime on the CPU: a model as it is, and forms of it that say how close is close enough."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from abqc.compiler.read_recipe import parse_recipe
from numpy.typing import NDArray
from zoo.halves import has_halves, in_f32
from zoo.noise import rounds_at_run_time, with_noise
from zoo.quantized import NotExpressible, quantized

Array = NDArray[Any]
Outputs = dict[str, Array]

DRAWS = 12  # of noise
RECIPE_DRAWS = 3


class Oracle:
    """The published model's answers, and those of its forms; sessions are made when asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._plain = session(path, "ORT_ENABLE_ALL")

    def plain(self, feeds: Outputs) -> Outputs:
        """As it comes, with all of onnxruntime's optimizations."""
        return run(self._plain, feeds)

    def unfused(self, feeds: Outputs) -> Outputs:
        """Without optimizations; some models run only with them: then as `plain`."""
        return run(self._unfused, feeds)

    def in_f32(self, feeds: Outputs, like: Outputs) -> Outputs | None:
        """A model of 16-bit floats in f32, rounded to the types of `like`; None of others.

        onnxruntime rounds after every operator, which on deep models moves its own results by
        more than a tolerance.
        """
        if not has_halves(self._model):
            return None
        found = run(session_of(self._wide, "ORT_ENABLE_ALL"), widened(feeds))
        return {name: array.astype(like[name].dtype) for name, array in found.items()}

    def with_noise(self, feeds: Outputs) -> list[Outputs]:
        """The answers with noise on the weights; none of a model that rounds nothing to codes."""
        if not rounds_at_run_time(self._model):
            return []
        return [
            run(session_of(with_noise(self._model, seed), "ORT_DISABLE_ALL"), feeds)
            for seed in range(DRAWS)
        ]

    def by_recipe(self, recipe: str, feeds: Outputs) -> list[Outputs]:
        """The model, in f32, with the recipe's rounding written in; [] where it has no form.

        The first is without, the others with noise on the weights.
        """
        try:
            rounded = quantized(self._wide, parse_recipe(recipe))
        except NotExpressible:
            return []
        wide = widened(feeds)
        moved = [
            run(session_of(with_noise(rounded, seed), "ORT_DISABLE_ALL"), wide)
            for seed in range(RECIPE_DRAWS)
        ]
        plain = run(session_of(rounded, "ORT_DISABLE_ALL"), wide)  # last: it loses its weights
        return [self._narrowed(outputs) for outputs in (plain, *moved)]

    def _narrowed(self, outputs: Outputs) -> Outputs:
        """Outputs of a form in f32, those of 16 bits rounded."""
        types = {output.name: output.type for output in self._plain.get_outputs()}
        return {
            name: array.astype(np.float16) if types[name] == "tensor(float16)" else array
            for name, array in outputs.items()
        }

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return onnx.load(self._path)

    @property
    def _wide(self) -> onnx.ModelProto:
        """A copy in f32."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        in_f32(model)
        return model

    @cached_property
    def _unfused(self) -> Any:
        try:
            return session(self._path, "ORT_DISABLE_ALL")
        except Exception:  # what onnxruntime itself wrote may need its fusions
            return self._plain


def session(path: Path, level: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def session_of(model: onnx.ModelProto, level: str) -> Any:
    """A session of a model in memory, whatever its size; `model` may lose its weights."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="weights")
        return session(path, level)


def run(loaded: Any, feeds: Outputs) -> Outputs:
    names = [output.name for output in loaded.get_outputs()]
    return dict(zip(names, map(tensor, loaded.run(None, feeds)), strict=True))


def widened(feeds: Outputs) -> Outputs:
    """16-bit floats as f32."""
    return {
        name: array.astype(np.float32)
        if array.dtype.itemsize == 2 and array.dtype.kind in "fV"
        else array
        for name, array in feeds.items()
    }


def tensor(value: Any) -> Array:
    """An output as an array; a ZipMap's list of dictionaries as their values, which are f32."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([list(row.values()) for row in value], np.float32)
    return np.asarray(value)
