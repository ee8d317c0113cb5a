"""Compare a compiled model with the float model in onnxruntime.

With --data, an .npz file whose arrays are named as the inputs and whose first axis counts samples:
cosine, top-1 agreement and largest error of every output. With --text, for language models:
perplexity of both models on fixed, non-overlapping windows, the paired difference of negative
log-likelihood with its standard error, and the KL divergence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abqc.compiler.commands.arguments import add_device, add_threads, read_arrays
from abqc.compiler.commands.table import table
from abqc.errors import AbqcError, InputError

if TYPE_CHECKING:
    from abqc.compiler.evaluate import Likelihood, OutputAccuracy
    from abqc.compiler.onnxruntime_peer import Peer
    from abqc.runtime.model import Model
    from numpy.typing import NDArray

NAME = "eval"
SUMMARY = "measure a compiled model's accuracy against the float model"
EXAMPLES = """examples:
  abqc eval model.onnx model.so --data samples.npz
  abqc eval decoder.onnx decoder.so --text handbook.txt --windows 40
"""

Feeds = dict[str, "NDArray[Any]"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("onnx", type=Path, help="the float model")
    parser.add_argument("model", type=Path, help="the library that `abqc compile` wrote")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", type=Path, help="an .npz file with samples")
    source.add_argument("--text", metavar="FILE", type=Path, help="a text file, UTF-8")
    parser.add_argument("--batch", type=int, default=8, help="samples in one run (default: 8)")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="a tokenizer.json (default: the one beside the ONNX file)",
    )
    parser.add_argument("--window", type=int, default=512, help="tokens a window (default: 512)")
    parser.add_argument("--windows", type=int, help="use only the first N windows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.onnxruntime_peer import Peer
    from abqc.runtime.model import load

    peer = Peer(args.onnx, threads=args.threads or 0)
    model = load(args.model, threads=args.threads, device=args.device)
    if args.data:
        accuracies = evaluate_samples(peer, model, read_arrays(args.data), args.batch)
        objects: Any = [accuracy.as_dict() for accuracy in accuracies]
        text = accuracy_table(accuracies)
    else:
        ids = tokenize(args.text, args.tokenizer or args.onnx.with_name("tokenizer.json"))
        likelihood = evaluate_text(peer, model, ids, args.window, args.windows)
        objects, text = likelihood.as_dict(), likelihood_text(likelihood)
    print(json.dumps(objects) if args.json else text)
    return 0


def evaluate_samples(
    peer: Peer, model: Model, samples: Mapping[str, NDArray[Any]], batch: int
) -> list[OutputAccuracy]:
    """Accuracy of every float output over `samples`, `batch` of them at a time."""
    from abqc.compiler.evaluate import output_accuracy
    from abqc.runtime.element_types import is_float

    expected, actual, masks = [], [], []
    for feeds in batches(model, samples, batch):
        expected.append(peer.run(feeds))
        actual.append(model.run(feeds))
        masks.append(feeds.get("attention_mask"))
    return [
        output_accuracy(spec.name, [e[i] for e in expected], [a[i] for a in actual], masks)
        for i, spec in enumerate(model.outputs)
        if is_float(spec.dtype) and expected[0][i].ndim > 0
    ]


def batches(model: Model, samples: Mapping[str, NDArray[Any]], batch: int) -> Iterator[Feeds]:
    missing = next((spec.name for spec in model.inputs if spec.name not in samples), None)
    if missing:
        raise InputError(f"the data have no array '{missing}'", hint="name arrays as the inputs")
    if batch < 1:
        raise InputError(f"--batch {batch} is not a number of samples")
    counts = {spec.name: len(samples[spec.name]) for spec in model.inputs}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InputError(f"the data's arrays differ in their number of samples: {counts}")
    for begin in range(0, min(counts.values()), batch):
        yield {name: samples[name][begin : begin + batch] for name in counts}


def tokenize(text: Path, tokenizer: Path) -> NDArray[Any]:
    """Token ids of a text file. Raises InputError, and AbqcError without `tokenizers`."""
    import numpy as np

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise AbqcError(
            "--text needs the package tokenizers, which is missing",
            hint="install it with `pip install tokenizers`",
        ) from error
    if not tokenizer.is_file():
        raise InputError(f"there is no file {tokenizer}", hint="name one with --tokenizer")
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {text}: {error}") from error
    return np.array(Tokenizer.from_file(str(tokenizer)).encode(content).ids, np.int64)


def evaluate_text(
    peer: Peer, model: Model, ids: NDArray[Any], size: int, limit: int | None
) -> Likelihood:
    """Likelihood of both models on windows of `size` tokens; `logits` is the output of interest."""
    from abqc.compiler.evaluate import split_windows, summarize, window_likelihood
    from abqc.compiler.feeds import make_feeds, resolve_shapes

    names = [spec.name for spec in model.outputs]
    if "input_ids" not in {spec.name for spec in model.inputs} or "logits" not in names:
        raise InputError("--text needs a model with an input 'input_ids' and an output 'logits'")
    windows = split_windows(ids, size, limit)
    if size < 2 or not len(windows):
        raise InputError(f"{len(ids)} tokens do not fill one window of {size}")
    shapes = resolve_shapes(model.inputs, window_shapes(model, size))
    feeds = make_feeds(model.inputs, shapes)
    index = names.index("logits")
    results = []
    for window in windows:
        feeds["input_ids"] = window[None].astype(feeds["input_ids"].dtype)
        expected, actual = peer.run(feeds)[index], model.run(feeds)[index]
        results.append(window_likelihood(expected[0], actual[0], window))
    return summarize(results)


def window_shapes(model: Model, size: int) -> dict[str, tuple[int, ...]]:
    """One window of `size` tokens and empty caches, which are the inputs named `past...`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in model.inputs:
        length = 0 if spec.name.startswith("past") else size
        shapes[spec.name] = tuple(
            dim if isinstance(dim, int) else (1 if axis == 0 else length)
            for axis, dim in enumerate(spec.shape)
        )
    return shapes


def accuracy_table(accuracies: list[OutputAccuracy]) -> str:
    rows = [
        (a.name, a.vectors, f"{a.cosine:.5f}", f"{a.worst:.5f}", f"{a.top1:.4f}", f"{a.error:.2e}")
        for a in accuracies
    ]
    header = ("output", "vectors", "cosine", "worst cosine", "top-1", "error of range")
    return table(header, rows)


def likelihood_text(result: Likelihood) -> str:
    error = "" if result.standard_error is None else f" +- {result.standard_error:.4f}"
    lines = {
        "windows": f"{result.windows} ({result.tokens} predicted tokens)",
        "perplexity float": f"{result.perplexity_expected:.3f}",
        "perplexity compiled": f"{result.perplexity_actual:.3f}",
        "NLL difference": f"{result.nll_difference:+.4f}{error} nats a token",
        "KL divergence": f"{result.kl:.5f} nats a token",
        "top-1 agreement": f"{result.agreement:.4f}",
    }
    return "\n".join(f"{key:20} {value}" for key, value in lines.items())
