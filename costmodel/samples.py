"""Files of measurements: JSON lines, described in docs/cost-model.md."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError
from .interface import Features, KernelFeatures, MatmulFeatures, Sample

FORMAT = "abqc-sample-1"
KINDS: dict[str, type[Features]] = {"matmul": MatmulFeatures, "kernel": KernelFeatures}
_KIND_NAMES = {kind: name for name, kind in KINDS.items()}


def to_json(sample: Sample) -> dict[str, Any]:
    """One line of a file."""
    data = dataclasses.asdict(sample)
    if not data["features"].get("operations", True):
        del data["features"]["operations"]
    return {"format": FORMAT, "kind": _KIND_NAMES[type(sample.features)], **data}


def from_json(data: dict[str, Any]) -> Sample:
    """Raises ValueError, KeyError or TypeError for what `to_json` does not write."""
    if data["format"] != FORMAT:
        raise ValueError(f"its format is '{data['format']}', not '{FORMAT}'")
    features = features_from_json(data["kind"], data["features"])
    seconds = float(data["seconds"])
    if not 0 < seconds < float("inf"):
        raise ValueError(f"it took {seconds} seconds")
    return Sample(
        features=features,
        seconds=seconds,
        device=str(data["device"]),
        driver=str(data["driver"]),
        date=str(data["date"]),
        repetitions=int(data["repetitions"]),
        spread=float(data.get("spread", 0.0)),
    )


def features_from_json(kind: str, data: dict[str, Any]) -> Features:
    """Raises ValueError or TypeError for a kind or fields that do not exist."""
    if kind not in KINDS:
        raise ValueError(f"'{kind}' is no kind of features")
    if "operations" in data:
        pairs = tuple((str(name), int(count)) for name, count in data["operations"])
        data = {**data, "operations": pairs}
    features = KINDS[kind](**data)
    for field in dataclasses.fields(features):
        value = getattr(features, field.name)
        if isinstance(value, str) != (field.type == "str"):
            raise TypeError(f"{field.name} is {value!r}")
    return features


def to_text(samples: Iterable[Sample]) -> str:
    """One line a sample."""
    return "".join(json.dumps(to_json(sample)) + "\n" for sample in samples)


def write(path: Path, samples: Iterable[Sample]) -> None:
    """Append to `path`, one line a sample; a line that was cut short stays apart."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(to_text(samples).encode())


def read(path: Path) -> list[Sample]:
    """All samples of a file. Raises InputError with the line that is none."""
    samples, problems = read_whole(path)
    if problems:
        raise InputError(problems[0], hint="docs/cost-model.md describes the format")
    return samples


def read_whole(path: Path) -> tuple[list[Sample], list[str]]:
    """The samples of a file, and what is wrong with each line that is none. Raises InputError for
    a file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    samples, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            samples.append(from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"line {number} of {path} is no sample: {error}")
    return samples, problems
