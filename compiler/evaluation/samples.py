"""Compiled models against the float model on a user's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from abqc.compiler.evaluation.metrics import (
    OutputAccuracy,
    OutputTotals,
    TaskAccuracy,
    label_hits,
)
from abqc.errors import InputError
from abqc.runtime.caches import encode_caches, float_signature
from abqc.runtime.element_types import is_float
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = dict[str, Array]
Report = Callable[[str, int, int], None]
MASK = "attention_mask"  # [batch, tokens]: the tokens that count


class Runner(Protocol):
    """The float model: anything that runs feeds to the outputs, by their number in the model."""

    def run(self, feeds: Mapping[str, Array]) -> Any: ...


@dataclass(frozen=True)
class SampleAccuracy:
    """One compiled model on all samples; `task` is None where no labels were given."""

    outputs: list[OutputAccuracy]
    task: TaskAccuracy | None

    def as_dict(self) -> dict[str, Any]:
        task = {} if self.task is None else {"task": self.task.as_dict()}
        return {"outputs": [output.as_dict() for output in self.outputs]} | task


def evaluate_samples(
    peer: Runner,
    models: Sequence[Any],
    samples: Mapping[str, Array],
    batch: int,
    *,
    labels: Array | None = None,
    output: str | None = None,
    report: Report | None = None,
) -> list[SampleAccuracy]:
    """Accuracy of the float outputs of `models` (runtime models of one signature, but for the
    formats of their caches) on `samples`.

    `samples` are arrays by input whose first axis counts samples; `batch` of them run at a time,
    the float model once for all. `labels` [samples, ...] are compared with the arg-max over the
    last axis of `output` (default: the first output whose other axes they have). InputError says
    what is wrong with the data.
    """
    check_samples(models, samples, batch)
    count = len(samples[models[0].inputs[0].name])
    outputs = _float_outputs(models[0])
    labelled = None
    totals = [{i: OutputTotals(name) for i, name in outputs.items()} for _ in models]
    hits, found, counted = 0, [0] * len(models), 0
    for begin in range(0, count, batch):
        if report is not None:
            report("samples", begin, count)
        feeds = {s.name: samples[s.name][begin : begin + batch] for s in models[0].inputs}
        expected = peer.run(feeds)
        chosen = None if labels is None else labels[begin : begin + batch]
        if chosen is not None and labels is not None:
            if labelled is None:
                labelled = _labelled_output(outputs, expected, labels, count, output)
            hits += label_hits(expected[labelled], chosen)
            counted += int((chosen >= 0).sum())
        for number, model in enumerate(models):
            actual = model.run(encode_caches(_manifest(model), feeds))
            for i, total in totals[number].items():
                _check_comparable(model, outputs[i], expected[i], actual[i])
                total.add(expected[i], actual[i], feeds.get(MASK))
            if chosen is not None and labelled is not None:
                found[number] += label_hits(actual[labelled], chosen)
    return [
        SampleAccuracy(
            [total.result() for total in totals[number].values()],
            None
            if labelled is None
            else TaskAccuracy(outputs[labelled], counted, hits / counted, found[number] / counted),
        )
        for number in range(len(models))
    ]


def _manifest(model: Any) -> Mapping[str, Any]:
    return getattr(model, "manifest", {})


def _signature(model: Any) -> tuple[list[Any], list[Any]]:
    """Of the float model, whatever its caches are stored in."""
    manifest = _manifest(model)
    return float_signature(manifest, model.inputs), float_signature(manifest, model.outputs)


def check_samples(models: Sequence[Any], samples: Mapping[str, Array], batch: int) -> None:
    """InputError unless all models take `samples`: names, numbers, finite values."""
    first = models[0]
    for model in models[1:]:
        if _signature(model) != _signature(first):
            raise InputError(
                f"{model.path} has other inputs or outputs than {first.path}",
                hint="compare libraries of one model",
            )
    names = [spec.name for spec in first.inputs]
    missing = next((name for name in names if name not in samples), None)
    if missing:
        given = ", ".join(samples) or "none"
        raise InputError(
            f"the data have no array '{missing}'",
            hint=f"name arrays as the inputs; those given: {given}",
        )
    unknown = next((name for name in samples if name not in names), None)
    if unknown:
        raise InputError(
            f"the data have an array '{unknown}', which is no input",
            hint=f"the inputs are {', '.join(names)}",
        )
    if batch < 1:
        raise InputError(f"--batch {batch} is not a number of samples")
    scalar = next((name for name in names if samples[name].ndim == 0), None)
    if scalar:
        raise InputError(f"the array '{scalar}' is a scalar: its first axis must count samples")
    counts = {name: len(samples[name]) for name in names}
    if len(set(counts.values())) != 1:
        raise InputError(f"the data's arrays differ in their number of samples: {counts}")
    if 0 in counts.values():
        raise InputError("the data hold no sample")
    for name in names:
        if samples[name].dtype.kind == "f" and not np.isfinite(samples[name]).all():
            row = int(np.argmin(np.isfinite(samples[name]).reshape(counts[name], -1).all(axis=1)))
            raise InputError(f"the array '{name}' has NaN or infinity in sample {row}")


def _float_outputs(model: Any) -> dict[int, str]:
    """The names of the outputs that are compared, by their number."""
    return {
        i: spec.name
        for i, spec in enumerate(model.outputs)
        if is_float(spec.dtype) and len(spec.shape) > 0
    }


def _labelled_output(
    outputs: Mapping[int, str],
    expected: Sequence[Array],
    labels: Array,
    samples: int,
    wanted: str | None,
) -> int:
    """The number of the output whose arg-max `labels` are compared with."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are integers, not {labels.dtype}")
    if wanted is not None and wanted not in outputs.values():
        raise InputError(
            f"there is no float output '{wanted}'",
            hint=f"they are {', '.join(outputs.values())}",
        )
    if labels.ndim == 0 or len(labels) != samples:
        count = len(labels) if labels.ndim else "no"
        raise InputError(f"there are {count} labels for {samples} samples")
    for i, name in outputs.items():
        fits = expected[i].shape[1:-1] == labels.shape[1:] and expected[i].ndim > 1
        if fits and wanted in (None, name):
            _check_classes(name, expected[i].shape[-1], labels)
            return i
    shapes = ", ".join(f"'{name}' {expected[i].shape[1:]}" for i, name in outputs.items())
    raise InputError(
        f"labels of shape {labels.shape} fit no output",
        hint=f"they have an output's shape without its last axis; a sample's outputs: {shapes}",
    )


def _check_classes(name: str, classes: int, labels: Array) -> None:
    if (labels < 0).all():
        raise InputError("all labels are negative, which means that none counts")
    if int(labels.max()) >= classes:
        raise InputError(
            f"label {int(labels.max())} is beyond the {classes} classes of output '{name}'"
        )


def _check_comparable(model: Any, name: str, expected: Array, actual: Array) -> None:
    """Figures of NaN would hide that a model is broken; arrays of other sizes would be repeated."""
    if actual.shape != expected.shape:
        last = _manifest(model).get("last_logits")
        raise InputError(
            f"output '{name}' of {model.path} is {list(actual.shape)} where the float model's is "
            f"{list(expected.shape)}",
            hint="compile it without --last-logits to evaluate it" if last else None,
        )
    if np.isnan(actual).any() and not np.isnan(expected).any():
        raise InputError(
            f"output '{name}' of {model.path} has NaN where the float model's has none"
        )
