"""Tries to compile and run a model in a child: what a user would see, in one word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conformance.backend import CPU
from conformance.isolate import run_isolated
from onnx import helper

Result = dict[str, Any]

SMALL = 64  # the largest size of an input that is still run
OPEN = 2  # what is given for a size that the model leaves open


def attempt(write: Callable[[Path], Path], *, run: bool = True, timeout: float = 60) -> Result:
    """`write(folder)` writes a model into an empty folder and returns its path.

    "status" of the result: "compiled", "ran", "run-error" and "refused" (an AbqcError with its
    "message" and "node"), "internal" (the compiler's own failure), "crash", "time-out". "left" are
    the files beside the model that were not there before, the artifact excepted.
    """

    def work(task: Any, folder: Path) -> Result:
        home = folder / "model"
        home.mkdir()
        source = task(home)
        before = _files(home)
        result = _try(source, folder, run)
        result["left"] = sorted(_files(home) - before)
        return result

    [(_, result)] = run_isolated([write], work, workers=1, timeout=timeout)
    return result


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _try(source: Path, folder: Path, run: bool) -> Result:
    from abqc.compiler.build import build
    from abqc.compiler.job import Request
    from abqc.errors import AbqcError, CompileError, ToolchainError

    output, work = folder / "model.so", folder / "work"
    work.mkdir()
    request = Request(source, "none", "cpu", output, work, cpu=CPU)
    try:
        build(request, lambda step, done, total: None, lambda name: None)
    except (CompileError, ToolchainError) as error:
        return _told("internal", error)
    except AbqcError as error:
        return _told("refused", error) | {"written": output.exists()}
    if not run:
        return {"status": "compiled"}
    try:
        return _run(output)
    except AbqcError as error:
        return _told("run-error", error)


def _told(status: str, error: Any) -> Result:
    return {"status": status, "message": str(error), "node": error.node}


def _run(artifact: Path) -> Result:
    from abqc.runtime.model import load

    model = load(artifact)
    shapes = [[size if isinstance(size, int) else OPEN for size in i.shape] for i in model.inputs]
    if any(np.prod(shape, dtype=float) > SMALL**2 or max(shape, default=0) > SMALL
           for shape in shapes):  # fmt: skip
        return {"status": "compiled"}
    feeds = [
        (np.arange(np.prod(shape)).reshape(shape) % 3).astype(_dtype(spec.dtype))
        for spec, shape in zip(model.inputs, shapes, strict=True)
    ]
    model.run(feeds)
    return {"status": "ran"}


def _dtype(name: str) -> np.dtype:
    """numpy's type, or ml_dtypes' where numpy has none."""
    try:
        return np.dtype(name)
    except TypeError:
        number = onnx.TensorProto.DataType.Value(name.upper())
        return np.dtype(helper.tensor_dtype_to_np_dtype(number))
