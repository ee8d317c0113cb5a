"""Measure what docs/benchmarks.md says and write it.

    make bench                                       # everything, about ten minutes
    python tests/bench/bench_models.py minilm        # one part, to standard output

Every part compares with onnxruntime in the same run. The part `smollm2` needs the model that
tests/models/export_smollm2.py writes and the text of tests/accuracy/texts.py.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
import numpy as np
import onnxruntime
from abqc.compiler.bench import interleave
from abqc.compiler.commands.table import byte_count
from abqc.compiler.evaluation.metrics import cosine, relative_error
from abqc.compiler.evaluation.text import evaluate_text, tokenize
from abqc.compiler.onnxruntime_peer import Peer, quantized
from accuracy.texts import fetch_text
from bench.measure import Compiled, Decoder, Feeds, compile_model
from models.fetch import Unavailable, fetch

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "models" / "data"
PAGE = ROOT / "docs" / "benchmarks.md"
EMBEDDING = 3
SECONDS = 5.0
WINDOWS = 10

LLAMA_CPP: list[tuple[object, ...]] = [
    ("llama.cpp Q8_0", "", 498, 112),
    ("llama.cpp Q4_0", "92 MB", 723, 160),
]


def markdown(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def tokens(length: int) -> Feeds:
    ids = np.random.default_rng(0).integers(1000, 30000, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}


class Bench:
    """Compiles every pair of model and recipe once."""

    def __init__(self, directory: Path) -> None:
        self.compiled = cache(
            lambda name, recipe: compile_model(
                self.path(name), recipe, directory / f"{name}-{recipe.replace(' ', '-')}.so"
            )
        )

    @staticmethod
    def path(name: str) -> Path:
        return DATA / f"{name}.onnx" if name.startswith("digits") else fetch(name)

    def load(self, name: str, recipe: str, threads: int | None = None) -> abqc.Model:
        return abqc.load(self.compiled(name, recipe).library, threads=threads)


def float_errors(bench: Bench) -> str:
    """`--quant none` against onnxruntime's float."""
    images = np.load(DATA / "digits.npz")["images"]
    sentences = dict(np.load(DATA / "sentences.npz"))
    cases = {
        "digits_mlp": {"X": images},
        "digits_cnn": {"image": images.reshape(-1, 1, 8, 8)},
        "minilm-l3": sentences,
    }
    rows = []
    for name, feeds in cases.items():
        expected = Peer(bench.path(name)).run(feeds)
        actual = bench.load(name, "none").run(feeds)
        rows.append((name, f"{worst(expected, actual):.1e}", "1e-4"))
    text = markdown(("model", "largest error of the output's range", "bar"), rows)
    return f"## Float\n\n`--quant none` against onnxruntime's float.\n\n{text}"


def worst(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    return max(relative_error(e, a) for e, a in zip(expected, actual, strict=True))


def minilm(bench: Bench) -> str:
    """Size, accuracy on 200 sentences, and latency of minilm-l3."""
    name = "minilm-l3"
    sentences = dict(np.load(DATA / "sentences.npz"))
    expected = Peer(bench.path(name)).run(sentences)[EMBEDDING]
    rows: list[tuple[object, ...]] = []
    for kind in ("float", "int8"):
        actual = Peer(bench.path(name), kind).run(sentences)[EMBEDDING]
        size = quantized(bench.path(name), kind).stat().st_size
        rows.append((f"onnxruntime {kind}", byte_count(size), mean_cosine(expected, actual), ""))
    bars = {"w8a8": "0.997", "w4a8": "0.93"}
    for recipe in ("none", "w8a8", "w4a8", "w4a4", "w4a4 rotate"):
        actual = bench.load(name, recipe).run(sentences)[EMBEDDING]
        size = bench.compiled(name, recipe).bytes
        score = mean_cosine(expected, actual)
        rows.append((f"`{recipe}`", byte_count(size), score, bars.get(recipe, "")))
    accuracy = markdown(("model", "size", "mean cosine to float", "bar"), rows)
    return "\n\n".join(
        (
            "## minilm-l3: paraphrase-MiniLM-L3-v2, a sentence encoder",
            "Accuracy on 200 sentences of the Jargon File (`tests/models/data/sentences.txt`).",
            accuracy,
            "Latency over 1 x 128 tokens, milliseconds, both sides timed in turns.",
            markdown(("recipe", "peer", "threads", "ms", "peer ms", "ratio", "bar"), speed(bench)),
        )
    )


def mean_cosine(expected: np.ndarray, actual: np.ndarray) -> str:
    return f"{cosine(expected, actual).mean():.4f}"


def speed(bench: Bench) -> list[tuple[object, ...]]:
    feeds = tokens(128)
    rows: list[tuple[object, ...]] = []
    for recipe, kind, bar in (
        ("none", "float", "2"),
        ("w8a8", "int8", "1.5"),
        ("w4a8", "int8", ""),
        ("w4a8", "nbits4", ""),
        ("w4a4 rotate", "int8", ""),
    ):
        for threads in (1, 2):
            peer = Peer(bench.path("minilm-l3"), kind, threads)
            model = bench.load("minilm-l3", recipe, threads)
            timing = interleave(run_of(model.run, feeds), run_of(peer.run, feeds), SECONDS)
            own, other = 1e3 * median(timing.own), 1e3 * median(timing.peer)
            ratio = f"{own / other:.2f}"
            rows.append((f"`{recipe}`", kind, threads, f"{own:.2f}", f"{other:.2f}", ratio, bar))
    return rows


def run_of(run: Callable[[Feeds], object], feeds: Feeds) -> Callable[[], object]:
    return lambda: run(feeds)


def smollm2(bench: Bench) -> str:
    """Cache, speed and perplexity of the decoder."""
    recipes = ("none", "w8a8", "w4a8")
    sides: dict[str, tuple[Generator, str]] = {
        f"`{recipe}`": (
            OwnGenerator(bench.load("smollm2", recipe, 2)),
            byte_count(bench.compiled("smollm2", recipe).bytes),
        )
        for recipe in recipes
    }
    sides["onnxruntime float"] = PeerGenerator(Peer(bench.path("smollm2"), "float", 2)), "538 MB"
    speeds = tokens_per_second({name: side for name, (side, _) in sides.items()})
    rows = [(name, size, *speeds[name]) for name, (_, size) in sides.items()] + LLAMA_CPP
    header = ("model", "size", "prompt of 128, tokens/s", "generating 32, tokens/s")
    return "\n\n".join(
        (
            "## smollm2: SmolLM2-135M-Instruct, a decoder",
            "Logits of 64 single steps, caches updated in place, against onnxruntime's of the "
            f"whole sequence: largest error {step_error(bench):.1e} of their range (bar 3e-4).",
            "Two threads. abqc and onnxruntime compute the logits of all positions of a prompt, "
            "llama.cpp only the last; its figures are of another day, on a machine of this kind.",
            markdown(header, rows),
            perplexity(bench),
        )
    )


def random_ids(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 49000, count)


def empty_caches(peer: Peer) -> Feeds:
    names = [i.name for i in peer.session.get_inputs() if i.name.startswith("past")]
    return {name: np.zeros((1, 3, 0, 64), np.float32) for name in names}


def sequence(ids: np.ndarray, begin: int, end: int) -> Feeds:
    return {
        "input_ids": ids[None, begin:end],
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(begin, end)[None],
    }


def step_error(bench: Bench) -> float:
    ids = random_ids(64)
    peer = Peer(bench.path("smollm2"))
    expected = peer.run(sequence(ids, 0, 64) | empty_caches(peer))[0][0]
    decoder = Decoder(bench.load("smollm2", "none"), 64)
    return relative_error(
        expected, np.concatenate([decoder.step(ids[i : i + 1]) for i in range(64)])
    )


class Generator(Protocol):
    """A decoder that starts from an empty cache at every call."""

    def prompt(self, ids: np.ndarray) -> object:
        """One run over all tokens."""

    def generate(self, ids: np.ndarray) -> object:
        """One run for each token."""


class OwnGenerator:
    def __init__(self, model: abqc.Model) -> None:
        self.model = model

    def prompt(self, ids: np.ndarray) -> None:
        Decoder(self.model, len(ids)).step(ids)

    def generate(self, ids: np.ndarray) -> None:
        decoder = Decoder(self.model, len(ids))
        for i in range(len(ids)):
            decoder.step(ids[i : i + 1])


class PeerGenerator:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.empty = empty_caches(peer)

    def prompt(self, ids: np.ndarray) -> None:
        self.peer.run(sequence(ids, 0, len(ids)) | self.empty)

    def generate(self, ids: np.ndarray) -> None:
        past = self.empty
        for i in range(len(ids)):
            _, *present = self.peer.run(sequence(ids, i, i + 1) | past)
            past = dict(zip(self.empty, present, strict=True))


def tokens_per_second(
    sides: Mapping[str, Generator], rounds: int = 9
) -> dict[str, tuple[str, str]]:
    """Medians over a prompt of 128 tokens and over 32 single steps, all sides in turns."""
    ids = random_ids(128)
    prompts: dict[str, list[float]] = {name: [] for name in sides}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side.prompt(ids[:1])  # pays for the other side's threads
            prompts[name].append(seconds_of(side.prompt, ids))
            steps[name].append(seconds_of(side.generate, ids[:32]))
    return {
        name: (f"{128 / median(prompts[name]):.0f}", f"{32 / median(steps[name]):.0f}")
        for name in sides
    }


def seconds_of(run: Callable[[np.ndarray], object], ids: np.ndarray) -> float:
    started = time.perf_counter()
    run(ids)
    return time.perf_counter() - started


def perplexity(bench: Bench) -> str:
    text = fetch_text("handbook")
    model = bench.path("smollm2")
    ids = tokenize(text, model.with_name("tokenizer.json"))
    peer = Peer(model, threads=2)
    rows: list[tuple[object, ...]] = []
    for recipe in ("w8a8", "w4a8", "w4a8 rotate"):
        compiled = bench.load("smollm2", recipe, 2)
        (result,) = evaluate_text(peer, [compiled], ids, 512, WINDOWS)
        if not rows:
            rows.append(("float", f"{result.perplexity_expected:.2f}", "", "", ""))
        rows.append(
            (
                f"`{recipe}`",
                f"{result.perplexity_actual:.2f}",
                f"{result.nll_difference:+.4f} ± {result.standard_error:.4f}",
                f"{result.kl:.4f}",
                f"{result.agreement:.3f}",
            )
        )
    header = ("recipe", "perplexity", "NLL difference (nats a token)", "KL", "top-1 agreement")
    return (
        f"Perplexity on {WINDOWS} windows of 512 tokens of the Debian handbook; differences are "
        "paired by window. The float model was itself dequantized from 4 bits (Q4_1), rounding is "
        f"to nearest, the head is quantized too.\n\n{markdown(header, rows)}"
    )


def compiling(bench: Bench) -> str:
    """What compiling costs, and what an artifact holds besides its weights."""
    rows = []
    for name, seconds in (("minilm-l3", "15"), ("smollm2", "90")):
        for recipe in ("none", "w8a8", "w4a8"):
            try:
                rows.append(compile_row(bench, name, recipe, seconds))
            except Unavailable:
                break
    header = (
        "model",
        "recipe",
        "seconds",
        "bar",
        "peak memory",
        "of the ONNX file",
        "overhead",
        "of the artifact",
    )
    return (
        "## Compiling\n\nSeconds of the whole command. Peak memory is of all its processes, "
        "with mapped files. Overhead is what an artifact holds beyond weights and constants "
        f"(bars: 2.5 times the file for smollm2, 2 MB and 3 %).\n\n{markdown(header, rows)}"
    )


def compile_row(bench: Bench, name: str, recipe: str, bar: str) -> tuple[object, ...]:
    result: Compiled = bench.compiled(name, recipe)
    folder = bench.path(name).parent
    source = sum(f.stat().st_size for f in folder.glob(f"{bench.path(name).name}*"))
    return (
        name,
        f"`{recipe}`",
        f"{result.seconds:.1f}",
        bar,
        byte_count(result.peak_bytes),
        f"{result.peak_bytes / source:.2f}",
        byte_count(result.overhead),
        f"{100 * result.overhead / result.bytes:.1f} %",
    )


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "a CPU")
    cores = sum(x.startswith("processor") for x in lines)
    versions = f"abqc {abqc.__version__}, onnxruntime {onnxruntime.__version__}"
    date = time.strftime("%Y-%m-%d")
    return f"{model}, {cores} cores; {versions}, Python {platform.python_version()}; {date}."


PARTS = {"float": float_errors, "minilm": minilm, "smollm2": smollm2, "compiling": compiling}


def main() -> None:
    chosen = sys.argv[1:]
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"no part {', '.join(sorted(unknown))}; they are {', '.join(PARTS)}")
    sections = [f"# Benchmarks\n\n`make bench` measures and writes this page. {machine()}"]
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        for name in chosen or PARTS:
            try:
                sections.append(PARTS[name](bench))
            except Unavailable as error:
                print(f"{name} left out: {error}", file=sys.stderr)
    text = "\n\n".join(sections) + "\n"
    if chosen:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
