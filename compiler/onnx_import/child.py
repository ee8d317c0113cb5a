"""The child process: `python -m abqc.compiler.onnx_import.child <directory>`.

torch-mlir can abort the process it runs in, so it runs in this one. The directory holds
`graph.onnx` (without weights) and `plan.json`; the child writes `result.mlirbc` and `result.json`,
or `refused.json` and exit code 3.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
from abqc.dialects.mlir import ir, make_context

from .lower import Refused, lower
from .plan import Plan

REFUSED = 3


def main(directory: Path) -> int:
    proto = onnx.load(directory / "graph.onnx", load_external_data=False)
    plan = Plan.load(directory / "plan.json")
    with make_context(), ir.Location.unknown():
        try:
            module, used = lower(proto, plan)
        except Refused as error:
            refused = {"message": str(error), "node": error.node}
            (directory / "refused.json").write_text(json.dumps(refused))
            return REFUSED
        with (directory / "result.mlirbc").open("wb") as file:
            module.operation.write_bytecode(file)
    (directory / "result.json").write_text(json.dumps([asdict(use) for use in used]))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
