"""Compare compiled models with the float model in onnxruntime.

With --data, an .npz file whose arrays are named as the inputs and whose first axis counts samples:
cosine, top-1 agreement and largest error of every output; with --labels the task accuracy too.
With --text, for language models: perplexity on fixed, non-overlapping windows, the paired
difference of negative log-likelihood with its standard error, and the KL divergence. Several
libraries are measured in one go; the float model runs once for all. --html writes a report with
plots into one file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abqc.compiler.commands.arguments import add_device, add_threads, read_array
from abqc.compiler.commands.inspect import weight_bits
from abqc.compiler.commands.progress import Progress
from abqc.compiler.commands.table import byte_count, table
from abqc.compiler.files import read_arrays
from abqc.errors import AbqcError, InputError

if TYPE_CHECKING:
    from abqc.compiler.evaluation.metrics import Likelihood
    from abqc.compiler.evaluation.samples import SampleAccuracy
    from abqc.runtime.model import Model

NAME = "eval"
SUMMARY = "measure compiled models' accuracy against the float model"
EXAMPLES = """examples:
  abqc eval model.onnx model.so --data samples.npz
  abqc eval model.onnx model.so --data images.npz --labels classes.npy
  abqc eval decoder.onnx w8.so w4.so --text handbook.txt --windows 40 --html report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("onnx", type=Path, help="the float model")
    parser.add_argument(
        "model", type=Path, nargs="+", help="libraries that `abqc compile` wrote of it"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", type=Path, help="an .npz file with samples")
    source.add_argument("--text", metavar="FILE", type=Path, help="a text file, UTF-8")
    parser.add_argument("--batch", type=int, default=8, help="samples in one run (default: 8)")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        type=Path,
        help="with --data: the right classes, an .npy file of integers with the shape of an output "
        "without its last axis; negative ones do not count",
    )
    parser.add_argument(
        "--output", metavar="NAME", help="the output that --labels are about (default: what fits)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="a tokenizer.json (default: the one beside the ONNX file)",
    )
    parser.add_argument("--window", type=int, default=512, help="tokens a window (default: 512)")
    parser.add_argument("--windows", type=int, help="use only the first N windows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        help="write a report too: one page with plots, noise by layer and histograms",
    )
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.onnxruntime_peer import Peer
    from abqc.runtime.model import load

    _check_arguments(args)
    peer = Peer(args.onnx, threads=args.threads or 0)
    models = [load(path, threads=args.threads, device=args.device) for path in args.model]
    if args.data:
        accuracies = _on_samples(args, peer, models)
        results: list[Any] = [accuracy.as_dict() for accuracy in accuracies]
        text = samples_text(models, accuracies)
    else:
        likelihoods = _on_text(args, peer, models)
        results = [{"likelihood": likelihood.as_dict()} for likelihood in likelihoods]
        text = text_of_likelihoods(models, likelihoods)
    objects = [describe(model) | result for model, result in zip(models, results, strict=True)]
    if args.html:
        _write_report(args, models, objects)
    print(json.dumps({"models": objects}) if args.json else text)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.labels and not args.data:
        raise InputError("--labels belong to --data")
    if args.output and not args.labels:
        raise InputError("--output names the output that --labels are about; there are none")
    if args.windows is not None and args.windows < 1:
        raise InputError(f"--windows {args.windows} is not a number of windows")


def _on_samples(args: argparse.Namespace, peer: Any, models: list[Model]) -> list[SampleAccuracy]:
    from abqc.compiler.evaluation.samples import evaluate_samples

    labels = read_array(args.labels) if args.labels else None
    samples = read_arrays(args.data)
    with Progress() as progress:
        return evaluate_samples(
            peer,
            models,
            samples,
            args.batch,
            labels=labels,
            output=args.output,
            report=progress,
        )


def _on_text(args: argparse.Namespace, peer: Any, models: list[Model]) -> list[Likelihood]:
    from abqc.compiler.evaluation.text import evaluate_text, tokenize

    ids = tokenize(args.text, args.tokenizer or args.onnx.with_name("tokenizer.json"))
    with Progress() as progress:
        return evaluate_text(peer, models, ids, args.window, args.windows, report=progress)


def _write_report(args: argparse.Namespace, models: list[Model], objects: list[Any]) -> None:
    from abqc.compiler.evaluation.report import ModelReport, Report, weight_layers, write_report

    feeds = _first_feeds(args, models[0])
    reports = []
    with Progress() as progress:
        for model, about in zip(models, objects, strict=True):
            activations, why_not = _activations(args.onnx, model, feeds, progress)
            layers = weight_layers(model.manifest)
            reports.append(ModelReport(about, layers, activations, why_not))
    write_report(Report(_name(args.onnx), _measured_on(args, objects[0]), reports), args.html)


def _name(onnx: Path) -> str:
    """The file and its folder: many models are called model.onnx."""
    return "/".join(onnx.resolve().parts[-2:])


def _activations(
    onnx: Path, model: Model, feeds: dict[str, Any], progress: Progress
) -> tuple[Any, str]:
    """The noise of a model's activations, and where there is none, why."""
    from abqc.compiler.evaluation.taps import activation_layers, rounds_activations

    manifest = model.manifest
    if not rounds_activations(manifest):
        return [], ""
    try:
        calibrated = "calibration" in manifest
        return activation_layers(onnx, manifest["recipe"], calibrated, feeds, progress), ""
    except AbqcError as error:
        return None, f"not measured: {error}"


def _first_feeds(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What the activations are looked at with: the first batch, or the first window."""
    if args.data:
        samples = read_arrays(args.data)
        return {spec.name: samples[spec.name][: args.batch] for spec in model.inputs}
    from abqc.compiler.evaluation.text import tokenize, window_feeds

    ids = tokenize(args.text, args.tokenizer or args.onnx.with_name("tokenizer.json"))
    return window_feeds(model, ids[: args.window])


def _measured_on(args: argparse.Namespace, about: dict[str, Any]) -> str:
    if args.data:
        vectors = about["outputs"][0]["vectors"] if about["outputs"] else 0
        return f"Measured on {args.data.name}, {vectors} vectors; float reference: onnxruntime."
    found = about["likelihood"]
    return (
        f"Measured on {args.text.name}: {found['windows']} windows of {args.window} tokens that do "
        "not overlap, caches empty at the start of each; float reference: onnxruntime."
    )


def describe(model: Model) -> dict[str, Any]:
    """What the report says of a library besides its accuracy."""
    count, bits = weight_bits(model.manifest["ops"] + model.manifest["tables"])
    return {
        "file": str(model.path),
        "recipe": model.manifest["recipe"],
        "bytes": Path(model.path).stat().st_size,
        "quantized_weights": count,
        "bits_per_weight": bits,
    }


def samples_text(models: list[Model], accuracies: list[SampleAccuracy]) -> str:
    parts = []
    for model, accuracy in zip(models, accuracies, strict=True):
        rows = [
            (
                o.name,
                o.vectors,
                f"{o.cosine:.5f}",
                f"{o.worst:.5f}",
                f"{o.top1:.4f}",
                f"{o.error:.2e}",
            )
            for o in accuracy.outputs
        ]
        header = ("output", "vectors", "cosine", "worst cosine", "top-1", "error of range")
        lines = [f"{model.path} ({model.manifest['recipe']})"] if len(models) > 1 else []
        lines.append(table(header, rows))
        if accuracy.task is not None:
            task = accuracy.task
            lines.append(
                f"{task.labels} labels of output '{task.output}': {task.actual:.4f} right, "
                f"float {task.expected:.4f}"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def text_of_likelihoods(models: list[Model], results: list[Likelihood]) -> str:
    if len(results) == 1:
        return likelihood_text(results[0])
    rows = []
    for model, result in zip(models, results, strict=True):
        about = describe(model)
        bits = about["bits_per_weight"]
        rows.append(
            (
                Path(model.path).name,
                about["recipe"],
                byte_count(about["bytes"]),
                "-" if bits is None else f"{bits:.2f}",
                f"{result.perplexity_actual:.3f}",
                f"{result.nll_difference:+.4f}{_error(result)}",
                f"{result.kl:.5f}",
                f"{result.agreement:.4f}",
            )
        )
    first = results[0]
    header = ("model", "recipe", "size", "bpw", "perplexity", "NLL difference", "KL", "top-1")
    return (
        f"{first.windows} windows ({first.tokens} predicted tokens), "
        f"perplexity float {first.perplexity_expected:.3f}\n{table(header, rows)}"
    )


def likelihood_text(result: Likelihood) -> str:
    lines = {
        "windows": f"{result.windows} ({result.tokens} predicted tokens)",
        "perplexity float": f"{result.perplexity_expected:.3f}",
        "perplexity compiled": f"{result.perplexity_actual:.3f}",
        "NLL difference": f"{result.nll_difference:+.4f}{_error(result)} nats a token",
        "KL divergence": f"{result.kl:.5f} nats a token",
        "top-1 agreement": f"{result.agreement:.4f}",
    }
    return "\n".join(f"{key:20} {value}" for key, value in lines.items())


def _error(result: Likelihood) -> str:
    return "" if result.standard_error is None else f" +- {result.standard_error:.4f}"
