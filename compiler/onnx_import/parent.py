"""Runs the child process and turns what can happen to it into errors that name a node."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import onnx
from abqc.errors import ModelError

from .plan import REFUSED, Plan
from .torch_to_abq import Used

TIMEOUT = 900  # seconds; SmolLM2-135M takes 6
PROBE_TIMEOUT = 120

_ILLEGAL = re.compile(r"failed to legalize operation '([\w.]+)'")
_OPERATOR = re.compile(r'name = "onnx\.(\w+)"')
_TYPES = re.compile(r" : (\([^)]*\) -> .*)$")


def lower_in_child(
    proto: onnx.ModelProto, plan: Plan, directory: Path, opset: int
) -> tuple[bytes, list[Used]]:
    """MLIR bytecode and the uses of weights; raises ModelError whatever becomes of the child."""
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, directory / "graph.onnx")
    plan.save(directory / "plan.json")
    code = _run("lower", directory, TIMEOUT)
    if code == 0:
        used = json.loads((directory / "result.json").read_text())
        return (directory / "result.mlirbc").read_bytes(), [Used(**item) for item in used]
    if code == REFUSED:
        refused = json.loads((directory / "refused.json").read_text())
        raise refusal(refused["message"], refused["node"], plan, opset)
    raise _died(code, plan, directory, opset)


def refusal(message: str, node: str | None, plan: Plan, opset: int) -> ModelError:
    """The error for what torch-mlir said about an operation that stems from `node`."""
    operator = _OPERATOR.search(message)
    op_type = operator[1] if operator else plan.op_types.get(node or "")
    types = _TYPES.search(message)
    illegal = _ILLEGAL.search(message)
    subject = f"operator {op_type} (opset {opset})" if op_type else "the model"
    if message.endswith("has no conversion"):
        return ModelError(f"the ONNX front end has no conversion of {subject}", node=node)
    if illegal and operator and types:
        reason = f" in this form: {_short_types(types[1])}"
    elif illegal:
        reason = f" here: {illegal[1]} has no lowering for these operands"
    else:
        reason = f": {_short_types(message)}"
    return ModelError(f"the ONNX front end cannot lower {subject}{reason}", node=node)


def _died(code: int, plan: Plan, directory: Path, opset: int) -> ModelError:
    """Lowers the nodes one by one until the child dies again."""
    how = _how(code)
    reason = _reason(directory)
    stage = _current(directory)
    if _run("probe", directory, PROBE_TIMEOUT) not in (0, REFUSED) and (
        node := _current(directory)
    ):
        op_type = plan.op_types.get(node, "?")
        return ModelError(
            f"the ONNX front end {how} on operator {op_type} (opset {opset}): {reason}", node=node
        )
    return ModelError(f"the ONNX front end {how} in {stage or 'its start'}: {reason}")


def _run(mode: str, directory: Path, timeout: float) -> int:
    """The child's exit code, negative for a signal."""
    command = [sys.executable, "-P", "-m", "abqc.compiler.onnx_import.child", mode, str(directory)]
    (directory / "current").write_text("")
    with (directory / "child.log").open("wb") as log:
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=timeout
            ).returncode
        except subprocess.TimeoutExpired:
            return -signal.SIGALRM


def _current(directory: Path) -> str:
    return (directory / "current").read_text()


def _how(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"did not finish within {TIMEOUT} s"
    if code == -signal.SIGKILL:
        return "was killed (out of memory?)"
    if code < 0:
        return f"aborted ({signal.Signals(-code).name})"
    return "failed"


def _reason(directory: Path) -> str:
    """The line of the child's output that says most: an assertion, or a traceback's last."""
    text = (directory / "child.log").read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if "Assertion" in line or "LLVM ERROR" in line:
            return line[-300:]
    return lines[-1][-300:] if lines else "it left no message"


def _short_types(text: str) -> str:
    return text.replace("!torch.vtensor", "tensor").replace("!torch.", "")[:300]
