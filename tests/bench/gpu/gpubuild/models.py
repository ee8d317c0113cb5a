"""Whole models: compiled for the GPU, and what the CPU's artifact makes of some inputs."""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import abqc
import numpy as np
import onnx
from abqc.compiler.driver import compile_file
from abqc.compiler.evaluation.metrics import relative_error
from abqc.runtime.model import Model
from decoder import decoder, feeds
from gpukit.kit import MODEL, ModelFeed
from models.fetch import Unavailable, fetch

from .images import Progress
from .plan import Plan

# Of an output's range (docs/numerics.md): what one code that differs by one step makes of a layer,
# and what such codes have made of a whole encoder (tests/test_gpu_models.py).
ONE_STEP, WHOLE_MODEL = 4e-3, 2e-2
# Codes that differ change those of the layers that follow. How far the CPU is from itself when its
# inputs differ by NOISE (relative), times NOISE_FACTOR, is no error.
NOISE, DRAWS, NOISE_FACTOR = 3e-7, 5, 3
CACHE_ROWS = 32  # of a cache that are compared; the other outputs depend on all of them
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Run:
    """Inputs as a kit has them (gpukit.kit.ModelFeed)."""

    name: str
    inputs: Feeds
    steps: int = 1
    caches: dict[str, str] = field(default_factory=dict)
    growing: dict[str, int] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"feed_{self.name.replace(' ', '_')}.npz"

    def feed(self, model: str, tolerance: float, new_rows: dict[str, int]) -> ModelFeed:
        more = (self.steps, self.caches, self.growing)
        return ModelFeed(model, self.name, self.file, tolerance, new_rows, *more)


def model_feeds(
    plan: Plan, target: str, folder: Path, progress: Progress
) -> tuple[list[ModelFeed], list[str]]:
    """Write models and feeds to `folder`/models; the feeds, and what could not be had."""
    made: list[ModelFeed] = []
    notes: list[str] = []
    for recipe in plan.decoder_recipes if plan.decoder_layers else ():
        progress(f"model decoder {recipe}")
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, "decoder.onnx")
            onnx.save(decoder(plan.decoder_layers), source)
            name, runs = f"decoder-{recipe}", list(_decoder_runs(plan))
            least = ONE_STEP if plan.decoder_layers == 1 else WHOLE_MODEL
            made += _model(name, source, recipe, target, runs, folder, least)
    if plan.minilm:
        try:
            source = fetch("minilm-l3")
        except Unavailable as error:
            notes.append(f"minilm-l3: {error}")
        else:
            progress("model minilm-l3")
            runs = [_Run(f"prompt {rows}", _sentence(rows)) for rows in plan.prompts]
            made += _model("minilm-l3-w4a8", source, "w4a8", target, runs, folder)
    return made, notes


def _sentence(rows: int) -> Feeds:
    ids = np.random.default_rng(rows).integers(1000, 30000, (1, rows))
    return {"input_ids": ids, "attention_mask": np.ones((1, rows), np.int64)}


def _decoder_runs(plan: Plan) -> Iterator[_Run]:
    layers = plan.decoder_layers
    for past, steps in plan.decoding:
        yield _decoding(past, steps, layers)
    for past in plan.prompts:
        yield _Run(f"step after {past}", _halves(feeds(1, 1, past, layers)))
    for rows in plan.prompts:
        yield _Run(f"prompt {rows}", _halves(feeds(1, rows, 0, layers)))


def _decoding(past: int, steps: int, layers: int) -> _Run:
    """So many steps of one row; the cache grows from `past` rows by one a step."""
    first = _halves(feeds(1, 1, past, layers))
    rows = _halves(feeds(1, steps, past, layers))
    caches = {name: name.replace("past", "present") for name in first if name.startswith("past")}
    inputs = {name: first[name] for name in caches} | {
        "x": rows["x"].transpose(1, 0, 2)[:, :, None],
        "position_ids": rows["position_ids"].T[:, :, None],
        "bias": np.zeros((1, 1, 1, past + steps), np.float32),
    }
    return _Run(f"decode {steps} after {past}", inputs, steps, caches, {"bias": past + 1})


def _halves(inputs: Feeds) -> Feeds:
    """The same in f32 values that f16 can hold, which compress better; a mask stays."""
    return {
        name: array.astype(np.float16).astype(np.float32)
        if array.dtype == np.float32 and name != "bias"
        else array
        for name, array in inputs.items()
    }


def _model(
    name: str,
    source: Path,
    recipe: str,
    target: str,
    runs: list[_Run],
    folder: Path,
    least: float = WHOLE_MODEL,
) -> list[ModelFeed]:
    """Compile, run and write a model; `least` is the smallest tolerance."""
    place = folder / "models" / name
    place.mkdir(parents=True, exist_ok=True)
    made = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        abqc.compile(source, quant=recipe, output=Path(scratch, "cpu.so")) as cpu,
    ):
        gpu = compile_file(source, quant=recipe, target=target, output=Path(scratch, "gpu.so"))
        (place / MODEL).write_bytes(lzma.compress(gpu.read_bytes()))
        for run in runs:
            outputs = _outputs(cpu, run, run.inputs)
            tolerance = max(least, NOISE_FACTOR * _noise(cpu, run, outputs))
            new_rows = _keep_new_rows(run, outputs)
            stored = {f"in_{key}": array for key, array in run.inputs.items()}
            stored |= {f"out_{key}": array for key, array in outputs.items()}
            np.savez_compressed(place / run.file, **stored)
            made.append(run.feed(name, tolerance, new_rows))
    return made


def _outputs(cpu: Model, run: _Run, inputs: Feeds) -> Feeds:
    """Those of the last step."""
    feed = run.feed("", 0.0, {})
    caches: Feeds = {}
    outputs: Feeds = {}
    for step in range(run.steps):
        given = feed.inputs_of(step, inputs) | caches
        outputs = dict(zip((o.name for o in cpu.outputs), cpu.run(given), strict=True))
        caches = {name: outputs[output] for name, output in run.caches.items()}
    return outputs


def _noise(cpu: Model, run: _Run, outputs: Feeds) -> float:
    """What noise on float inputs does to outputs, of their range; 0 where there are only ids."""
    noisy = [n for n, a in run.inputs.items() if a.dtype == np.float32 and n != "bias"]
    worst = 0.0
    for draw in range(DRAWS if noisy else 0):
        rng = np.random.default_rng(draw)
        inputs = dict(run.inputs)
        for name in noisy:
            factor = 1 + NOISE * rng.standard_normal(inputs[name].shape)
            inputs[name] = inputs[name] * factor.astype(np.float32)
        other = _outputs(cpu, run, inputs)
        worst = max(worst, *(relative_error(outputs[name], other[name]) for name in outputs))
    return worst


def _keep_new_rows(run: _Run, outputs: Feeds) -> dict[str, int]:
    """Leave only the last of the new rows of caches that come back grown, and say how many."""
    new_rows = {}
    for output, array in outputs.items():
        past = run.inputs.get(output.replace("present", "past"))
        if output.startswith("present") and past is not None:
            new_rows[output] = min(CACHE_ROWS, array.shape[-2] - past.shape[-2])
            outputs[output] = array[..., -new_rows[output] :, :]
    return new_rows
