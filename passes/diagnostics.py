"""What MLIR finds wrong with its IR, in one line that blames an ONNX node."""

from __future__ import annotations

import re

from abqc.dialects.mlir import ir
from abqc.errors import AbqcError

# Names in locations; `"file":1:2` is a place in a text.
_NAME = re.compile(r'"((?:[^"\\]|\\.)+)"(?!:\d)')
# How MLIR prints quotes, backslashes and all bytes that are not printable ASCII.
_ESCAPED = re.compile(rb"\\(\\|[0-9A-F]{2})")


def named(location: ir.Location) -> str | None:
    """The ONNX node that a location names, the first one where several were fused."""
    match = _NAME.search(str(location))
    if match is None:
        return None
    return _ESCAPED.sub(_unescaped, match[1].encode()).decode(errors="replace")


def _unescaped(match: re.Match[bytes]) -> bytes:
    return b"\\" if match[1] == b"\\" else bytes([int(match[1], 16)])


def explain(error: Exception) -> tuple[str, str | None]:
    """What an exception says, in one line, and the ONNX node to blame where it tells.

    Of MLIR's diagnostics it is the first: those after it are usually what follows from it.
    """
    if isinstance(error, AbqcError):
        return error.message, error.node
    if isinstance(error, ir.MLIRError) and error.error_diagnostics:
        first = error.error_diagnostics[0]
        return " ".join(first.message.split()), named(first.location)
    return f"{type(error).__name__}: {' '.join(str(error).split())}", None
