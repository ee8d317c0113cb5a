"""The report of `abqc eval` as one HTML page: tables and plots, no script, no external file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from abqc.compiler.evaluation.svg import Bar, Point, bar_chart, histogram, scatter
from abqc.compiler.files import write_text

WORST_LAYERS = 40  # bars of a model; the table behind them has all
HISTOGRAMS = 6
FLOAT_BITS = 32.0

STYLE = """
:root { color-scheme: light dark; --ink: #1a1c20; --paper: #fff; --soft: #667; --line: #d5d8de;
  --one: #2f6fb3; --two: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #16181c; --soft: #9aa0aa;
  --line: #363a42; --one: #6ea8e0; --two: #e08a4f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
h3 { font-size: 1em; margin-bottom: .3em; } p, figcaption { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { padding: .2em .8em .2em 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td.n, th.n { text-align: right; }
svg { max-width: 100%; height: auto; overflow: visible; }
svg .label { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .bar { fill: var(--one); } svg .axis, svg .grid { stroke: var(--line); }
svg .error { stroke: var(--soft); } svg .point { fill: var(--one); }
svg .before, .key.before { fill: var(--soft); fill-opacity: .35; }
svg .after, .key.after { fill: none; stroke: var(--two); stroke-width: 1.3; }
.grid3 { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1.2em; }
figure { margin: 0; } figcaption { font-size: .85em; overflow-wrap: anywhere; }
details { margin: .6em 0; } summary { cursor: pointer; }
"""


@dataclass(frozen=True)
class Layer:
    """The noise of one layer's weight or activation; `snr_db` None: none at all."""

    node: str
    format: str
    snr_db: float | None
    histogram: Mapping[str, Any]


@dataclass(frozen=True)
class ModelReport:
    """One library: `about` as `abqc eval --json` prints it, and its layers' noise.

    `activations` is None where they were not measured; `why_not` says why.
    """

    about: Mapping[str, Any]
    weights: Sequence[Layer]
    activations: Sequence[Layer] | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report; `data` says in words what was measured on."""

    model: str
    data: str
    models: Sequence[ModelReport]
    facts: Mapping[str, str] = field(default_factory=dict)


def weight_layers(manifest: Mapping[str, Any]) -> list[Layer]:
    """The layers of an artifact whose weights' noise was recorded, in the model's order."""
    return [
        Layer(op["node"], op["weight"], op["snr_db"], op["histogram"])
        for op in [*manifest["ops"], *manifest["tables"]]
        if "histogram" in op
    ]


def worst_first(layers: Iterable[Layer]) -> list[Layer]:
    """By falling noise; those without noise come last."""
    return sorted(layers, key=lambda layer: (layer.snr_db is None, layer.snr_db or 0))


def write_report(report: Report, path: Path) -> None:
    """Write the page; it appears whole or not at all. Raises InputError."""
    write_text(path, page(report))


def page(report: Report) -> str:
    """The HTML text."""
    title = f"Accuracy of {report.model}"
    body = "\n".join(_sections(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _sections(report: Report) -> Iterable[str]:
    yield f"<p>{escape(report.data)}</p>"
    yield from (f"<p>{escape(key)}: {escape(text)}</p>" for key, text in report.facts.items())
    yield "<h2>Models</h2>"
    yield _model_table([model.about for model in report.models])
    yield from _scatter_section(report.models)
    for model in report.models:
        yield from _layer_sections(model, several=len(report.models) > 1)


def _model_table(models: Sequence[Mapping[str, Any]]) -> str:
    """A row a model, or one for each of its outputs."""
    header = ["model", "recipe", "size (MB)", "bits a weight"]
    figures = [_figures(model) for model in models]
    header += next((list(found[0]) for found in figures if found), [])
    rows: list[list[str]] = []
    for model, found in zip(models, figures, strict=True):
        bits = model["bits_per_weight"]
        about = [
            Path(model["file"]).name,
            model["recipe"],
            f"{model['bytes'] / 1e6:.1f}",
            "float" if bits is None else f"{bits:.3f}",
        ]
        rows += [[*about, *part.values()] for part in found]
    return table(header, rows, numbers=range(2, len(header)))


def _figures(model: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was measured, by heading; for samples one of each output."""
    if "likelihood" in model:
        found = model["likelihood"]
        error = found["standard_error"]
        return [
            {
                "perplexity (float)": f"{found['perplexity_actual']:.3f} "
                f"({found['perplexity_expected']:.3f})",
                "dNLL (nats a token)": f"{found['nll_difference']:+.4f}"
                + ("" if error is None else f" ± {error:.4f}"),
                "KL": f"{found['kl']:.5f}",
                "top-1 agreement": f"{found['agreement']:.4f}",
            }
        ]
    task = model.get("task")
    return [
        {
            "output": output["name"],
            "mean cosine": f"{output['cosine']:.5f}",
            "worst": f"{output['worst']:.5f}",
            "top-1 agreement": f"{output['top1']:.4f}",
            **({} if task is None else {"task accuracy (float)": _task(task, output["name"])}),
        }
        for output in model["outputs"]
    ]


def _task(task: Mapping[str, Any], output: str) -> str:
    if task["output"] != output:
        return ""
    return f"{task['actual']:.4f} ({task['expected']:.4f})"


def _scatter_section(models: Sequence[ModelReport]) -> Iterable[str]:
    if len(models) < 2:
        return
    points = [_point(model.about) for model in models]
    y_label = points[0][1]
    yield "<h2>Bits against accuracy</h2>"
    yield scatter(
        f"{y_label} over bits a weight", "bits a weight", y_label, [point for point, _ in points]
    )


def _point(about: Mapping[str, Any]) -> tuple[Point, str]:
    bits = about["bits_per_weight"] or FLOAT_BITS
    label = about["recipe"].splitlines()[0]
    if "likelihood" in about:
        found = about["likelihood"]
        y, error = found["nll_difference"], found["standard_error"] or 0.0
        return Point(bits, y, error, label), "dNLL (nats a token)"
    if "task" in about:
        return Point(bits, about["task"]["actual"], 0.0, label), "task accuracy"
    worst = min(about["outputs"], key=lambda output: output["cosine"])
    return Point(bits, worst["cosine"], 0.0, label), "mean cosine of the worst output"


def _layer_sections(model: ModelReport, *, several: bool) -> Iterable[str]:
    name = f": {model.about['recipe'].splitlines()[0]}" if several else ""
    yield f"<h2>Noise by layer{escape(name)}</h2>"
    yield (
        "<p>Signal to noise in decibels, worst first: 10 dB is an error of 32 % of the signal, "
        "20 dB of 10 %, 40 dB of 1 %.</p>"
    )
    yield from _layers("weights", model.weights)
    if model.activations is not None:
        yield from _layers("activations", model.activations)
    elif model.why_not:
        yield f"<h3>Activations</h3><p>{escape(model.why_not)}</p>"


def _layers(kind: str, layers: Sequence[Layer]) -> Iterable[str]:
    yield f"<h3>{kind.capitalize()}</h3>"
    if not layers:
        yield f"<p>No {kind} are rounded.</p>"
        return
    ordered = worst_first(layers)
    shown = ordered[:WORST_LAYERS]
    bars = [Bar(layer.node, layer.snr_db, _decibels(layer)) for layer in shown]
    yield bar_chart(f"Signal to noise of {kind} by layer", bars)
    if len(ordered) > len(shown):
        rows = [[layer.node, layer.format, _decibels(layer)] for layer in ordered]
        yield f"<details><summary>All {len(ordered)} layers</summary>"
        yield table(["node", "format", "signal to noise"], rows, numbers=[2]) + "</details>"
    yield (
        f"<p>{kind.capitalize()} before (filled) and after (line) of the worst layers; heights "
        "are roots of counts.</p>"
    )
    yield '<div class="grid3">' + "".join(map(_figure, ordered[:HISTOGRAMS])) + "</div>"


def _figure(layer: Layer) -> str:
    found = layer.histogram
    plot = histogram(
        f"{layer.node} before and after", found["limit"], found["before"], found["after"]
    )
    caption = f"{layer.node}, {layer.format}, {_decibels(layer)}"
    return f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>"


def _decibels(layer: Layer) -> str:
    return "exact" if layer.snr_db is None else f"{layer.snr_db:.1f} dB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int]) -> str:
    """An HTML table whose columns `numbers` align right."""
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        written = (
            f"<{tag}{' class=n' if i in right else ''}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(written)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(header, "th")}{body}</table></div>'
