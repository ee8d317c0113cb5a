"""abqc as the backend of a test: compile in this process, load, run all sets of values, compare.

To be called in a child of its own (`isolate.py`). `prepare_modules` imports what it needs.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import onnx
from abqc.errors import AbqcError, CompileError, ToolchainError
from onnx import TensorProto, helper

from .agreement import disagreement
from .cases import DataSet

Result = dict[str, Any]

CPU = "avx2"  # one set of instructions is enough for these tests, and a third of the work


def prepare_modules() -> None:
    """Do here, once, what every child would do again: imports, and what a first compile sets up."""
    import abqc.runtime.model  # noqa: F401

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "warm", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        compile_model(model, Path(folder))


def run_model(
    model: onnx.ModelProto, sets: list[DataSet], tolerances: tuple[float, float], folder: Path
) -> Result:
    """Compile `model` in `folder`, run every set and compare.

    "status" of the result is
    passed, refused     refused: an AbqcError that is no failure of the compiler
    internal            a pass failed, or the compiler raised what no user can act on
    run-error           an AbqcError when it ran
    wrong               outputs that differ
    """
    started = time.perf_counter()
    try:
        artifact = compile_model(model, folder)
    except (CompileError, ToolchainError) as error:
        return _failure("internal", error)
    except AbqcError as error:
        return _failure("refused", error)
    except Exception as error:
        return _failure("internal", error)
    compiled = round(time.perf_counter() - started, 3)
    result = _run(model, sets, tolerances, artifact)
    result["compile_seconds"] = compiled
    return result


def compile_model(model: onnx.ModelProto, folder: Path) -> Path:
    """The artifact of `model`, compiled in this process for the CPU, in float: for AVX2 only."""
    from abqc.compiler.build import build
    from abqc.compiler.job import Request

    source, output, work = folder / "model.onnx", folder / "model.so", folder / "work"
    onnx.save(model, source)
    work.mkdir()
    request = Request(source, "none", "cpu", output, work, cpu=CPU)
    build(request, lambda step, done, total: None, lambda name: None)
    return output


def _run(
    model: onnx.ModelProto, sets: list[DataSet], tolerances: tuple[float, float], artifact: Path
) -> Result:
    from abqc.runtime.model import load

    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    try:
        loaded = load(artifact)
        known = {spec.name for spec in loaded.inputs}
        for inputs, expected in sets:
            feeds = {n: v for n, v in zip(names, inputs, strict=True) if n in known}
            wrong = disagreement(expected, loaded.run(feeds), *tolerances)
            if wrong is not None:
                return {"status": "wrong", "message": wrong}
    except AbqcError as error:
        return _failure("run-error", error)
    except Exception as error:
        return _failure("internal", error)
    return {"status": "passed"}


def _failure(status: str, error: Exception) -> Result:
    text = str(error) if isinstance(error, AbqcError) else f"{type(error).__name__}: {error}"
    return {
        "status": status,
        "message": " ".join(text.split())[:600],
        "node": getattr(error, "node", None),
        "traceback": "".join(traceback.format_exception(error))[-3000:],
    }
