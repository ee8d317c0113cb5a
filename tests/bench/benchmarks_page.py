"""The page docs/benchmarks.md, and its plots, of the results that bench_models.py keeps."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import log10
from pathlib import Path
from typing import Any

from abqc import __version__
from abqc.compiler.commands.table import byte_count
from abqc.compiler.evaluation.svg import Point, scatter

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
ZOO_PAGE = PLOTS / "zoo-speed.md"
STYLE = (
    "<style>text{font:12px sans-serif;fill:#444}.grid{stroke:#ddd}.error{stroke:#888}"
    ".point{fill:#06c}</style><rect width='100%' height='100%' fill='#fff'/>"
)

ZOO = (
    "## Models of the zoo\n\n[benchmarks/zoo-speed.md](benchmarks/zoo-speed.md) has every model of "
    "the zoo beside onnxruntime's float."
)

Values = Mapping[str, Any]


def about() -> str:
    """The machine, what was measured, and when."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "a CPU")
    cores = sum(x.startswith("processor") for x in lines)
    names = ("onnxruntime", "openvino", "llama-cpp-python")
    versions = [f"abqc {__version__}", *(f"{n} {v}" for n in names if (v := installed(n)))]
    date = time.strftime("%Y-%m-%d")
    return (
        f"{cpu}, {cores} cores; {', '.join(versions)}, Python {platform.python_version()}; {date}."
    )


def installed(name: str) -> str:
    """The version of a package, empty where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def write_zoo_page(table: str) -> None:
    """The page of models of the zoo, of bench_zoo.py's table."""
    PLOTS.mkdir(exist_ok=True)
    text = (
        f"# Models of the zoo beside onnxruntime\n\n`tests/bench/bench_zoo.py` measures and writes "
        f"this page. {about()}\n\nMilliseconds of a run from Python, of onnxruntime's in float, "
        "and their quotient (below 1 abqc is faster), by recipe and threads; both in one process "
        "in turns, medians. [zoo.md](../zoo.md) says what the models are, "
        "`tests/bench/bench_zoo.py` of what size their inputs are. Under `w8a8` what cannot be "
        f"quantized stays float; a model of which nothing can is left out.\n\n{table}\n"
    )
    ZOO_PAGE.write_text(text, encoding="utf-8")


def write_page(values: Values, missing: Mapping[str, str]) -> None:
    PLOTS.mkdir(exist_ok=True)
    sections = [
        f"# Benchmarks\n\n`make bench` measures and writes this page. {about()}",
        "All engines of a table run in one process in turns, medians; behind another engine's "
        "block there is a rest of 60 ms, in which its spinning threads fall asleep. OpenVINO's "
        "int8 and int4 are weights compressed by NNCF (symmetric; groups of 64 for int4), its "
        "activations are its own choice. onnxruntime's int8 is dynamic quantization, nbits4 "
        "MatMulNBits with blocks of 32 and accuracy_level 4. What each recipe costs in accuracy "
        "is in [accuracy.md](accuracy.md).",
        *latencies(values),
        *cosines(values),
        *decoder(values),
        *matmul(values),
        *compiling(values),
    ]
    if ZOO_PAGE.exists():
        sections.append(ZOO)
    if missing:
        lines = [f"- {name}: {why}" for name, why in sorted(missing.items())]
        sections.append("## Left out\n\n" + "\n".join(lines))
    PAGE.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def markdown(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def latencies(values: Values) -> list[str]:
    """A table a model: an engine a row, sizes and threads as columns."""
    keys = [key.split("/")[1:] for key in values if key.startswith("latency/")]
    sections = []
    for model in dict.fromkeys(key[0] for key in keys):
        columns = [(size, threads) for name, size, threads in keys if name == model]
        cells = {(s, t): values[f"latency/{model}/{s}/{t}"] for s, t in columns}
        engines = dict.fromkeys(engine for cell in cells.values() for engine in cell)
        rows = [
            [
                code(engine),
                *(f"{cells[c][engine]:.3g}" if engine in cells[c] else "" for c in cells),
            ]
            for engine in engines
        ]
        header = ["milliseconds", *(f"{size}, {threads} thr." for size, threads in columns)]
        sections.append(f"## {model}\n\n{markdown(header, rows)}")
    return sections


def cosines(values: Values) -> list[str]:
    found = values.get("cosine")
    if not found:
        return []
    rows = [[code(e), byte_count(size), f"{score:.4f}"] for e, (size, score) in found.items()]
    table = markdown(["minilm-l3", "size", "mean cosine to float"], rows)
    return [
        "## Accuracy of minilm-l3\n\nOn 200 sentences of the Jargon File "
        f"(`tests/models/data/sentences.txt`), without calibration.\n\n{table}"
    ]


def code(engine: str) -> str:
    name, _, rest = engine.partition(" ")
    return f"`{rest}`" if name == "abqc" else engine


def decoder(values: Values) -> list[str]:
    keys = [key for key in values if key.startswith("decoder/")]
    if not keys:
        return []
    engines = dict.fromkeys(engine for key in keys for engine in values[key])
    header = ["tokens/s"]
    for key in keys:
        threads = key.split("/")[-1]
        header += [f"prompt of 128, {threads} thr.", f"generating 32, {threads} thr."]
    rows = []
    for engine in engines:
        figures = [f"{v:.0f}" for k in keys for v in values[k].get(engine, ())]
        rows.append([code(engine), *figures])
    text = (
        "abqc, onnxruntime and OpenVINO compute the logits of all positions of a prompt, llama.cpp "
        "and abqc with `--last-logits` only the last. abqc's caches are updated in place; "
        "onnxruntime and OpenVINO run the ONNX model, whose caches come out of a step and go into "
        "the next."
    )
    name = keys[0].split("/")[1]
    return [f"## {name}: SmolLM2-135M-Instruct\n\n{text}\n\n{markdown(header, rows)}"]


def matmul(values: Values) -> list[str]:
    found = values.get("matmul")
    if not found:
        return []
    rows = []
    for row in found:
        limit = max(row["memory_us"], row["arithmetic_us"])
        bound = "memory" if row["memory_us"] > row["arithmetic_us"] else "arithmetic"
        rate = row["rows"] * 4096 * 4096 / row["us"] / 1e3
        share = f"{limit / row['us']:.0%}"
        rows.append(
            [
                row["rows"],
                row["bits"],
                row["strategy"],
                f"{row['us']:.0f}",
                f"{limit:.0f} ({bound})",
                share,
                f"{rate:.0f}",
            ]
        )
    header = ["rows", "bits", "strategy", "us", "limit, us", "of the limit", "GMAC/s"]
    bits = [
        Point(row["bits"], row["us"], 0.0, f"w{row['bits']}a8") for row in found if row["rows"] == 1
    ]
    plot(
        "latency-bits",
        scatter("One row times 4096 x 4096: latency by bits", "bits of a weight", "us", bits),
    )
    roofline = [
        Point(
            log10(row["rows"] * 4096 * 4096 / row["bytes"]),
            log10(row["rows"] * 4096 * 4096 / row["us"] / 1e3),
            0.0,
            f"w{row['bits']}a8 x {row['rows']}",
        )
        for row in found
    ]
    plot(
        "roofline",
        scatter(
            "Roofline: rate by multiply-adds for a byte of weights",
            "log10 of multiply-adds for a byte",
            "log10 of GMAC/s",
            roofline,
        ),
    )
    return [
        f"## Products by bits\n\nK = N = 4096, activations of 8 bits already packed, one thread, "
        f"{found[0]['isa']}, weights from memory, the kernels that a compile chooses, medians. The "
        f"limits were measured in turns with them: {found[0]['bandwidth'] / 1e9:.0f} GB/s read, "
        f"{found[0]['rate'] / 1e9:.0f} G multiply-adds a second.\n\n{markdown(header, rows)}\n\n"
        "![latency by bits](benchmarks/latency-bits.svg)\n\n![roofline](benchmarks/roofline.svg)"
    ]


def plot(name: str, svg: str) -> None:
    begin = svg.index(">") + 1
    text = svg[:begin] + STYLE + svg[begin:] + "\n"
    (PLOTS / f"{name}.svg").write_text(text, encoding="utf-8")


def compiling(values: Values) -> list[str]:
    rows = []
    for key, figures in values.items():
        if not key.startswith("compile/"):
            continue
        _, name, recipe = key.split("/")
        rows.append(
            [
                name,
                f"`{recipe}`",
                f"{figures['seconds']:.1f}",
                byte_count(figures["peak"]),
                byte_count(figures["bytes"]),
                f"{figures['bytes'] / figures['source']:.2f}",
                byte_count(figures["overhead"]),
            ]
        )
    header = [
        "model",
        "recipe",
        "seconds",
        "peak memory",
        "artifact",
        "of the ONNX file",
        "overhead",
    ]
    return [
        "## Compiling\n\nSeconds of the whole command, kernels that the cache has left out. Peak "
        "memory is of all its processes, with mapped files. Overhead is what an artifact holds "
        f"beyond weights and constants.\n\n{markdown(header, rows)}"
    ]
