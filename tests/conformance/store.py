"""The node tests on disk: onnx computes them anew in each process, which takes 7 s.

They are kept in the cache folder, one file for each version of onnx, as a pickle of those of
onnx's records: written and read by the same user only.
"""

from __future__ import annotations

import os
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx.backend.test import loader
from onnx.backend.test.case.test_case import TestCase


def node_tests() -> list[Any]:
    """onnx's records of its node tests; their models are parsed when they are asked for."""
    path = _path()
    if not path.exists():
        _write(path)
    with path.open("rb") as file:
        return pickle.load(file)


def _path() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "abqc" / "conformance" / f"node-tests-onnx-{version('onnx')}.pickle"


def _write(path: Path) -> None:
    tests = loader.load_model_tests(kind="node")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_suffix(f".{os.getpid()}")
    with scratch.open("wb") as file:
        pickle.dump([_plain(test) for test in tests], file, pickle.HIGHEST_PROTOCOL)
    scratch.rename(path)


def _plain(test: TestCase) -> TestCase:
    """With lists instead of generators and the like, which no pickle takes."""
    test.data_sets = [(list(inputs), list(outputs)) for inputs, outputs in test.data_sets or []]
    return test
