"""Measure what docs/benchmarks.md says and write it.

    make bench                                          # all that is missing, then the page
    python tests/bench/bench_models.py minilm-l3        # the parts whose names begin so
    python tests/bench/bench_models.py --page           # nothing measured: the page alone

Libraries and results (`results.jsonl`) are kept in the cache folder (`--folder`), so that it goes
on where it stopped; `--again` measures what is there too. All engines of a table are timed in one
process in turns. Engines that are not installed are left out and named: peers.py says what they
need, ABQC_BENCH_GGUF names SmolLM2's GGUF file. tests/models/export_smollm2.py writes smollm2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
import numpy as np
from abqc.compiler.bench import BLOCK_SECONDS, REST_SECONDS, time_block
from abqc.compiler.evaluation.metrics import cosine
from abqc.compiler.onnxruntime_peer import Peer, quantized
from abqc.errors import AbqcError
from abqc.runtime.decoder import Decoder
from abqc.runtime.environment import cache_folder
from accuracy import make_models
from bench import narrow
from bench.benchmarks_page import PAGE, write_page
from bench.matmul_rows import matmul_rows
from bench.measure import compile_model
from bench.peers import Llama, OpenVino, requantized
from models.fetch import Unavailable, fetch

RECIPES = ("none", "none:bf16", "w8a8", "w4a8", "w2a8")
FEW_BITS = ("w8a8", "w4a8", "w2a8")
EMBEDDING_TOO = "w4a8 embed=w6:g64"  # and with it the head, a fifth of the weights
LAST_LOGITS = "--last-logits"
ROUNDS = 7
PROMPT, GENERATED = 128, 32
Feeds = dict[str, np.ndarray]
Run = Callable[[], object]


def model_file(name: str) -> Path:
    """The ONNX file. Raises Unavailable."""
    return make_models.minilm() if name == "minilm-l6" else fetch(name)


class Results:
    """JSON objects by key, one a line; the last line of a key counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.values: dict[str, Any] = {}
        for line in lines:
            entry = json.loads(line)
            self.values[entry["key"]] = entry["value"]

    def keep(self, key: str, value: Any) -> None:
        self.values[key] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")


class Bench:
    """Compiles, measures and keeps what is missing; `missing` says what could not be had."""

    def __init__(self, folder: Path, *, again: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.again = again
        self.results = Results(folder / "results.jsonl")
        self.missing: dict[str, str] = {}

    def has(self, key: str) -> bool:
        return not self.again and key in self.results.values

    def library(self, name: str, recipe: str, *options: str) -> Path:
        """The compiled model; what compiling took is a result."""
        recipe_file = "-".join((recipe, *options)).replace(" ", "-").replace(":", "-")
        path = self.folder / f"{name}-{recipe_file}.so"
        key = "/".join(("compile", name, " ".join((recipe, *options))))
        if not path.exists() or not self.has(key):
            source = model_file(name)
            made = compile_model(source, recipe, path, *options)
            files = source.parent.glob(f"{source.name}*")
            figures = {
                "seconds": made.seconds,
                "peak": made.peak_bytes,
                "bytes": made.bytes,
                "overhead": made.overhead,
                "source": sum(f.stat().st_size for f in files),
            }
            self.results.keep(key, figures)
        return path

    def sides(self, makers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """What the makers make; those that cannot be had are noted."""
        made = {}
        for name, make in makers.items():
            try:
                made[name] = make()
            except (Unavailable, AbqcError) as error:
                self.missing[name] = str(error)
                print(f"{name} left out: {error}", file=sys.stderr)
        return made


def in_turns(sides: Mapping[str, Run], *, rest: float = REST_SECONDS) -> dict[str, float]:
    """Medians in milliseconds; a rest behind other engines' blocks, for threads to fall asleep."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            seconds[name] += time_block(run, BLOCK_SECONDS)
            if not name.startswith("abqc"):
                time.sleep(rest)
    return {name: 1e3 * median(all_) for name, all_ in seconds.items()}


# ---- models that are run whole ----


def tokens(rows: int, length: int) -> Feeds:
    ids = np.random.default_rng(0).integers(1000, 30000, (rows, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def image(*shape: int) -> Feeds:
    return {"x": np.random.default_rng(0).standard_normal(shape, np.float32)}


SIZES: dict[str, dict[str, Feeds]] = {
    "minilm-l3": {"1 x 128": tokens(1, 128), "8 x 128": tokens(8, 128)},
    "minilm-l6": {"1 x 128": tokens(1, 128), "8 x 128": tokens(8, 128)},
    "ocr-det": {"320 x 320": image(1, 3, 320, 320)},
    "ocr-rec": {"48 x 320": image(1, 3, 48, 320)},
    "ocr-cls": {"48 x 192": image(1, 3, 48, 192)},
}


def model_part(bench: Bench, name: str) -> None:
    for size, feeds in SIZES[name].items():
        for threads in (1, 2):
            key = f"latency/{name}/{size}/{threads}"
            if bench.has(key):
                continue
            sides = bench.sides(engines(bench, name, threads))
            runs = {side: run_of(engine, feeds) for side, engine in sides.items()}
            bench.results.keep(key, in_turns(runs))


def engines(bench: Bench, name: str, threads: int) -> dict[str, Callable[[], Any]]:
    """Makers of all engines; convolution networks have no weights of 4 bits, which are matmuls'."""
    path = model_file(name)
    few = name.startswith("ocr")
    makers: dict[str, Callable[[], Any]] = {
        f"abqc {recipe}": lambda recipe=recipe: abqc.load(  # type: ignore[misc]
            bench.library(name, recipe), threads=threads
        )
        for recipe in RECIPES
    }
    for kind in ("float",) if few else ("float", "int8", "nbits4"):
        makers[f"onnxruntime {kind}"] = lambda kind=kind: Peer(path, kind, threads)  # type: ignore[misc]
    for kind in ("f32", "bf16") if few else ("f32", "bf16", "int8", "int4"):
        makers[f"OpenVINO {kind}"] = lambda kind=kind: OpenVino(  # type: ignore[misc]
            path, kind, threads, bench.folder
        )
    return makers


def run_of(engine: Any, feeds: Feeds) -> Run:
    if isinstance(engine, abqc.Model):
        feeds = {spec.name: feeds[spec.name] for spec in engine.inputs}
    return lambda: engine.run(feeds)


NARROW = {"minilm-l3": "1 x 128", "ocr-det": "320 x 320"}


def narrow_part(bench: Bench, name: str) -> None:
    """Models with AVX2 alone."""
    for model, size in NARROW.items():
        key = f"{name}/{model}/{size}"
        if not bench.has(key):
            recipes = ("none", "w8a8", "w4a8", "w2a8")
            libraries = {recipe: bench.library(model, recipe) for recipe in recipes}
            figures = narrow.measure(model_file(model), libraries, size, bench.folder)
            bench.results.keep(key, figures)


# ---- accuracy of an encoder ----

SENTENCES = Path(__file__).resolve().parent.parent / "models" / "data" / "sentences.npz"
EMBEDDING = 3  # of minilm-l3's outputs


def cosine_part(bench: Bench, name: str) -> None:
    """Bytes, and the mean cosine of sentences' embeddings to the float model's."""
    if bench.has(name):
        return
    path = model_file("minilm-l3")
    sentences = dict(np.load(SENTENCES))
    expected = Peer(path).run(sentences)[EMBEDDING]
    figures: dict[str, tuple[int, float]] = {}
    for kind in ("float", "int8"):
        actual = Peer(path, kind).run(sentences)[EMBEDDING]
        size = quantized(path, kind).stat().st_size
        figures[f"onnxruntime {kind}"] = size, float(cosine(expected, actual).mean())
    for recipe in (*RECIPES, "w4a4", "w4a4 rotate"):
        library = bench.library("minilm-l3", recipe)
        actual = abqc.load(library).run(sentences)[EMBEDDING]
        score = float(cosine(expected, actual).mean())
        figures[f"abqc {recipe}"] = library.stat().st_size, score
    bench.results.keep(name, figures)


# ---- the decoder ----


class OwnSteps:
    """Every engine: forget all, then append tokens."""

    def __init__(self, library: Path, threads: int) -> None:
        self._decoder = Decoder(abqc.load(library, threads=threads), room=PROMPT + GENERATED)

    def reset(self) -> None:
        self._decoder.reset()

    def step(self, ids: np.ndarray, begin: int) -> None:
        self._decoder.step(ids)


class OnnxSteps:
    """An engine that runs the ONNX model: caches come out of a run and go into the next."""

    def __init__(self, engine: Peer | OpenVino, names: list[str]) -> None:
        self._engine = engine
        self._past = [name for name in names if name.startswith("past")]
        self.reset()

    def reset(self) -> None:
        self._caches = {name: np.zeros((1, 3, 0, 64), np.float32) for name in self._past}

    def step(self, ids: np.ndarray, begin: int) -> None:
        end = begin + len(ids)
        feeds = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end)[None],
        }
        _, *present = self._engine.run(feeds | self._caches)
        if isinstance(self._engine, OpenVino):  # its outputs are overwritten by the next run
            present = [array.copy() for array in present]
        self._caches = dict(zip(self._past, present, strict=True))


def smollm2_part(bench: Bench, name: str) -> None:
    for threads in (1, 2):
        key = f"decoder/{name}/{threads}"
        if bench.has(key):
            continue
        sides = bench.sides(decoders(bench, name, threads))
        bench.results.keep(key, tokens_per_second(sides))


def decoders(bench: Bench, name: str, threads: int) -> dict[str, Callable[[], Any]]:
    path = model_file(name)

    def onnxruntime(kind: str) -> OnnxSteps:
        peer = Peer(path, kind, threads)
        return OnnxSteps(peer, [i.name for i in peer.session.get_inputs()])

    def openvino(kind: str) -> OnnxSteps:
        engine = OpenVino(path, kind, threads, bench.folder)
        return OnnxSteps(engine, engine.names)

    def llama(kind: str) -> Llama:
        source = os.environ.get("ABQC_BENCH_GGUF")
        if source is None:
            raise Unavailable("ABQC_BENCH_GGUF names no file")
        return Llama(requantized(Path(source), kind, bench.folder), threads, PROMPT + GENERATED)

    makers: dict[str, Callable[[], Any]] = {}
    for recipe in (*RECIPES, EMBEDDING_TOO):
        makers[f"abqc {recipe}"] = lambda recipe=recipe: OwnSteps(  # type: ignore[misc]
            bench.library(name, recipe), threads
        )
    for recipe in (*FEW_BITS, EMBEDDING_TOO):
        makers[f"abqc {recipe} {LAST_LOGITS}"] = lambda recipe=recipe: OwnSteps(  # type: ignore[misc]
            bench.library(name, recipe, LAST_LOGITS), threads
        )
    for kind in ("float", "int8", "nbits4"):
        makers[f"onnxruntime {kind}"] = lambda kind=kind: onnxruntime(kind)  # type: ignore[misc]
    for kind in ("f32", "bf16", "int8", "int4"):
        makers[f"OpenVINO {kind}"] = lambda kind=kind: openvino(kind)  # type: ignore[misc]
    for kind in ("Q8_0", "Q4_0"):
        makers[f"llama.cpp {kind}"] = lambda kind=kind: llama(kind)  # type: ignore[misc]
    return makers


def tokens_per_second(sides: Mapping[str, Any], rounds: int = 5) -> dict[str, tuple[float, float]]:
    """Medians over a prompt of 128 tokens and over 32 single steps after an empty cache."""
    ids = np.random.default_rng(0).integers(0, 49000, PROMPT)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side.reset()
            side.step(ids[:1], 0)  # wakes threads
            for begin, taken in ((0, seconds[name][0]), (1, seconds[name][1])):
                side.reset()
                if begin:
                    side.step(ids[:1], 0)
                started = time.perf_counter()
                if begin:
                    for i in range(begin, begin + GENERATED):
                        side.step(ids[i : i + 1], i)
                else:
                    side.step(ids, 0)
                taken.append(time.perf_counter() - started)
            time.sleep(REST_SECONDS)
    return {
        name: (PROMPT / median(prompt), GENERATED / median(steps))
        for name, (prompt, steps) in seconds.items()
    }


# ---- products ----


def matmul_part(bench: Bench, name: str) -> None:
    if not bench.has(name):
        bench.results.keep(name, matmul_rows())


PARTS: dict[str, Callable[[Bench, str], None]] = {
    **dict.fromkeys(SIZES, model_part),
    "cosine": cosine_part,
    "smollm2": smollm2_part,
    "matmul": matmul_part,
    "avx2": narrow_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "bench")
    parser.add_argument("--again", action="store_true", help="what is there already too")
    parser.add_argument("--page", action="store_true", help="write the page of what is there")
    args = parser.parse_args()
    bench = Bench(args.folder, again=args.again)
    for name, part in PARTS.items():
        if args.page or (args.parts and not name.startswith(tuple(args.parts))):
            continue
        try:
            part(bench, name)
            print(f"{name} done", flush=True)
        except Unavailable as error:
            bench.missing[name] = str(error)
            print(f"{name} left out: {error}", file=sys.stderr)
    write_page(bench.results.values, bench.missing)
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
