"""Files that take their name only when they are whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from abqc.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` by way of a temporary file beside it. Raises InputError."""
    try:
        descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(made).chmod(0o644)
            os.replace(made, path)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
