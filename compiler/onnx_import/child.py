"""The child process: `python -m abqc.compiler.onnx_import.child lower|probe <directory>`.

torch-mlir can abort the process it runs in, so it runs in this one. The directory holds
`graph.onnx` (without weights) and `plan.json`. `lower` writes `result.mlirbc` and `result.json`, or
`refused.json` and exits with `REFUSED`. `probe` lowers node after node, each by itself, and writes
to `current` which one it is at, so that the file names the culprit if the process dies.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
from abqc.dialects.mlir import ir, make_context

from .lower import Refused, lower
from .plan import REFUSED, Plan
from .single import single_node_models


def main(mode: str, directory: Path) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    proto = onnx.load(directory / "graph.onnx", load_external_data=False)
    plan = Plan.load(directory / "plan.json")
    with make_context(), ir.Location.unknown():
        if mode == "probe":
            return probe(proto, plan, directory)
        return lower_whole(proto, plan, directory)


def lower_whole(proto: onnx.ModelProto, plan: Plan, directory: Path) -> int:
    stage = directory / "current"
    try:
        module, used = lower(proto, plan, on_stage=stage.write_text)
    except Refused as error:
        refused = {"message": str(error), "node": error.node}
        (directory / "refused.json").write_text(json.dumps(refused))
        return REFUSED
    with (directory / "result.mlirbc").open("wb") as file:
        module.operation.write_bytecode(file)
    (directory / "result.json").write_text(json.dumps([asdict(use) for use in used]))
    return 0


def probe(proto: onnx.ModelProto, plan: Plan, directory: Path) -> int:
    for node, model, sub_plan in single_node_models(proto, plan):
        (directory / "current").write_text(node)
        with contextlib.suppress(Refused):
            lower(model, sub_plan)
    (directory / "current").write_text("")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
