"""What a result was made with: results of other code are not taken for its own."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("codegen", "compiler", "costmodel", "dialects", "passes", "runtime")
_SUFFIXES = {".py", ".c", ".h", ".lark", ".json", ".npz"}


def fingerprint(backend: str) -> str:
    """Of abqc the digest of its sources, of another backend its version."""
    if backend != "abqc":
        return f"{backend} {version(backend)}"
    digest = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
