"""Compiled language models against the float model on windows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.evaluation.metrics import (
    Likelihood,
    WindowLikelihood,
    WindowReference,
    split_windows,
    summarize,
)
from abqc.compiler.evaluation.samples import Report, Runner
from abqc.compiler.feeds import make_feeds, resolve_shapes
from abqc.compiler.tokenizer import load_tokenizer
from abqc.errors import InputError
from abqc.runtime.caches import encode_caches, float_signature
from numpy.typing import NDArray

Array = NDArray[Any]
IDS, LOGITS = "input_ids", "logits"


def tokenize(text: Path, tokenizer: Path) -> Array:
    """Token ids of a text file. Raises InputError, and AbqcError without `tokenizers`."""
    reader = load_tokenizer(tokenizer)
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {text}: {error}") from error
    return np.array(reader.encode(content).ids, np.int64)


def evaluate_text(
    peer: Runner,
    models: Sequence[Any],
    ids: Array,
    size: int,
    limit: int | None,
    *,
    report: Report | None = None,
) -> list[Likelihood]:
    """Likelihood of `models` on windows of a text; arguments and errors as `compare_windows`."""
    windows = compare_windows(peer, models, ids, size, limit, report=report)
    return [summarize(figures) for figures in windows]


def compare_windows(
    peer: Runner,
    models: Sequence[Any],
    ids: Array,
    size: int,
    limit: int | None,
    *,
    report: Report | None = None,
) -> list[list[WindowLikelihood]]:
    """Figures of `models` on the first `limit` non-overlapping windows of `size` tokens, or all.

    Every window starts with empty caches; the float model runs once on it. InputError where the
    models have no `input_ids` and `logits`, or the text has no window, or less than `limit`.
    """
    for model in models:
        _check_signature(model)
    windows = split_windows(ids, size, limit) if size > 1 else np.empty((0, size))
    if not len(windows):
        raise InputError(
            f"{len(ids)} tokens do not fill one window of {size}",
            hint="take a longer text, or --window with 2 tokens or more",
        )
    if limit is not None and len(windows) < limit:
        raise InputError(
            f"the text has {len(windows)} windows of {size} tokens, {limit} are asked for",
            hint=f"take a longer text, or --windows {len(windows)}",
        )
    results: list[list[WindowLikelihood]] = [[] for _ in models]
    for number, window in enumerate(windows):
        if report is not None:
            report("windows", number, len(windows))
        reference = None
        for model, figures in zip(models, results, strict=True):
            feeds = window_feeds(model, window)
            at = _logits_at(model)
            if reference is None:
                reference = WindowReference(peer.run(feeds)[at][0], window)
            stored = encode_caches(getattr(model, "manifest", {}), feeds)
            figure = reference.compare(model.run(stored)[at][0])
            if not np.isfinite([figure.nll_actual, figure.kl]).all():
                raise InputError(
                    f"the logits of {model.path} have NaN or infinity in window {number}"
                )
            figures.append(figure)
    return results


def _check_signature(model: Any) -> None:
    inputs = {spec.name for spec in model.inputs}
    outputs = {spec.name for spec in model.outputs}
    if IDS not in inputs or LOGITS not in outputs:
        raise InputError(
            f"--text needs a model with an input '{IDS}' and an output '{LOGITS}'; {model.path} "
            f"has {', '.join(sorted(inputs))} and {', '.join(sorted(outputs))}",
            hint="measure it on samples with --data",
        )
    if getattr(model, "manifest", {}).get("last_logits"):
        raise InputError(
            f"{model.path} gives the logits of the last token alone",
            hint="compile it without --last-logits to evaluate it",
        )


def _logits_at(model: Any) -> int:
    return [spec.name for spec in model.outputs].index(LOGITS)


def window_feeds(model: Any, window: Array) -> dict[str, Array]:
    """The window `window` [tokens] as a batch of one, all of it seen, caches empty, of floats."""
    inputs = float_signature(getattr(model, "manifest", {}), model.inputs)
    shapes = resolve_shapes(inputs, window_shapes(inputs, len(window)))
    feeds = make_feeds(inputs, shapes)
    feeds[IDS] = window[None].astype(feeds[IDS].dtype)
    return feeds


def window_shapes(inputs: Sequence[Any], size: int) -> dict[str, tuple[int, ...]]:
    """One window of `size` tokens and empty caches, which are the inputs named `past...`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in inputs:
        length = 0 if spec.name.startswith("past") else size
        shapes[spec.name] = tuple(
            dim if isinstance(dim, int) else (1 if axis == 0 else length)
            for axis, dim in enumerate(spec.shape)
        )
    return shapes
