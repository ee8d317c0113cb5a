"""Runs the child process and turns what can happen to it into errors that name a node."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import onnx
from abqc.errors import ModelError

from .child import REFUSED
from .plan import Plan
from .torch_to_abq import Used

TIMEOUT = 900  # seconds; SmolLM2-135M takes 20


def lower_in_child(
    proto: onnx.ModelProto, plan: Plan, directory: Path, opset: int
) -> tuple[bytes, list[Used]]:
    """MLIR bytecode and the uses of weights."""
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, directory / "graph.onnx")
    plan.save(directory / "plan.json")
    code, log = _run_child(directory)
    if code == 0:
        used = json.loads((directory / "result.json").read_text())
        return (directory / "result.mlirbc").read_bytes(), [Used(**item) for item in used]
    if code == REFUSED:
        refused = json.loads((directory / "refused.json").read_text())
        raise refusal(refused["message"], refused["node"], plan, opset)
    raise ModelError(f"the ONNX front end {_end(code)}: {log[-400:]}")


def refusal(message: str, node: str | None, plan: Plan, opset: int) -> ModelError:
    op_type = plan.op_types.get(node or "")
    subject = f"operator {op_type} (opset {opset})" if op_type else "the model"
    return ModelError(
        f"the ONNX front end cannot lower {subject}: {message}", node=node if op_type else None
    )


def _run_child(directory: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "abqc.compiler.onnx_import.child", str(directory)]
    log = directory / "child.log"
    with log.open("wb") as file:
        try:
            done = subprocess.run(command, stdout=file, stderr=file, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise ModelError(f"the ONNX front end did not finish in {TIMEOUT} s") from None
    return done.returncode, log.read_text(errors="replace")


def _end(code: int) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"failed with exit code {code}"
