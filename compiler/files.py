"""Files that take their name only when they are whole, and archives of arrays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from abqc.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, which takes its name at the end; OSError as files raise it.

    If the block raises, nothing is left behind and what was at `path` stays.
    """
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(made).chmod(0o644)
        os.replace(made, path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Raises InputError."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def read_arrays(path: Path, name: str | None = None) -> dict[str, NDArray[Any]]:
    """The arrays in an .npz file, by name. Raises InputError, which calls the file `name`."""
    from zipfile import BadZipFile
    from zlib import error as ZlibError

    import numpy as np

    name = name or str(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{name} holds one array without a name", hint="give an .npz file")
        with archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile, ZlibError) as error:
        raise InputError(f"cannot read {name}: {error}") from error
