"""Whole models: compiled for the GPU, and what the CPU's artifact makes of some inputs."""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path

import abqc
import numpy as np
import onnx
from abqc.compiler.driver import compile_file
from decoder import decoder, feeds
from gpukit.kit import MODEL, ModelFeed
from models.fetch import Unavailable, fetch

from .images import Progress
from .plan import Plan

# Of an output's range: a code that differs by one step is a 255th of its row's range.
ONE_STEP = 4e-3
CACHE_ROWS = 32  # of a cache that are compared; the other outputs depend on all of them
Feeds = dict[str, np.ndarray]


def model_feeds(
    plan: Plan, target: str, folder: Path, progress: Progress
) -> tuple[list[ModelFeed], list[str]]:
    """Write models and feeds to `folder`/models; the feeds, and what could not be had."""
    made: list[ModelFeed] = []
    notes: list[str] = []
    if plan.minilm:
        try:
            source = fetch("minilm-l3")
        except Unavailable as error:
            notes.append(f"minilm-l3: {error}")
        else:
            progress("model minilm-l3")
            runs = {f"prompt {rows}": _sentence(rows) for rows in plan.prompts}
            made += _model("minilm-l3-w4a8", source, "w4a8", target, runs, folder)
    for recipe in plan.decoder_recipes if plan.decoder_layers else ():
        progress(f"model decoder {recipe}")
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, "decoder.onnx")
            onnx.save(decoder(plan.decoder_layers), source)
            runs = dict(_decoder_runs(plan))
            made += _model(f"decoder-{recipe}", source, recipe, target, runs, folder)
    return made, notes


def _sentence(rows: int) -> Feeds:
    ids = np.random.default_rng(rows).integers(1000, 30000, (1, rows))
    return {"input_ids": ids, "attention_mask": np.ones((1, rows), np.int64)}


def _decoder_runs(plan: Plan) -> Iterator[tuple[str, Feeds]]:
    for rows in plan.prompts:
        yield f"prompt {rows}", _halves(feeds(1, rows, 0, plan.decoder_layers))
    for past in plan.prompts:
        yield f"step after {past}", _halves(feeds(1, 1, past, plan.decoder_layers))


def _halves(inputs: Feeds) -> Feeds:
    """The same in f32 values that f16 can hold, which compress better; a mask stays."""
    return {
        name: array.astype(np.float16).astype(np.float32)
        if array.dtype == np.float32 and name != "bias"
        else array
        for name, array in inputs.items()
    }


def _model(
    name: str, source: Path, recipe: str, target: str, runs: dict[str, Feeds], folder: Path
) -> list[ModelFeed]:
    place = folder / "models" / name
    place.mkdir(parents=True, exist_ok=True)
    made = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        abqc.compile(source, quant=recipe, output=Path(scratch, "cpu.so")) as cpu,
    ):
        gpu = compile_file(source, quant=recipe, target=target, output=Path(scratch, "gpu.so"))
        (place / MODEL).write_bytes(lzma.compress(gpu.read_bytes()))
        for run, inputs in runs.items():
            outputs = dict(zip((o.name for o in cpu.outputs), cpu.run(inputs), strict=True))
            made.append(_write(name, run, inputs, outputs, place))
    return made


def _write(name: str, run: str, inputs: Feeds, outputs: Feeds, place: Path) -> ModelFeed:
    """Of a cache that comes back grown only the last of the new rows are stored."""
    file = f"feed_{run.replace(' ', '_')}.npz"
    new_rows = {}
    for output, array in outputs.items():
        past = inputs.get(output.replace("present", "past"))
        if output.startswith("present") and past is not None:
            new_rows[output] = min(CACHE_ROWS, array.shape[-2] - past.shape[-2])
            outputs[output] = array[..., -new_rows[output] :, :]
    stored = {f"in_{key}": array for key, array in inputs.items()}
    stored |= {f"out_{key}": array for key, array in outputs.items()}
    np.savez_compressed(place / file, **stored)
    return ModelFeed(name, run, file, ONE_STEP, new_rows)
