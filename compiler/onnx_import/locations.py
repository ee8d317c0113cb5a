"""From MLIR locations back to ONNX nodes."""

from __future__ import annotations

import re

from abqc.dialects.mlir import ir

_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')


def node_name(location: ir.Location) -> str | None:
    """The first name in a location; torch-mlir's importer names each op after its node."""
    match = _NAME.search(str(location))
    return match[1] if match and match[1] else None
