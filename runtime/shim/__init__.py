"""The C sources that are linked into every artifact, and the header of its interface."""

from __future__ import annotations

from pathlib import Path

SHIM_DIRECTORY = Path(__file__).parent
HEADER = SHIM_DIRECTORY / "abqc.h"
