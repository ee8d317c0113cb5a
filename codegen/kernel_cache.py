"""Compiled kernels, kept by content in the cache folder.

An entry's name is a digest of the kernel's IR, its instruction set or GPU and all that turns one
into the other: the code generator's sources, the versions of MLIR and LLVM, and which assembler a
GPU's have. Entries begin with a digest of what follows, so that a damaged one is none. Of too many
the least recently used ones go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

import llvmlite

from ..dialects.mlir import bindings_identity
from ..runtime.environment import cache_folder

LIMIT = 4000  # entries; one has a few kB, those with all kernels of a GPU artifact hundreds
LIMIT_BYTES = 256 << 20
_MUCH = 1 << 16  # bytes stored by one process, after which all are counted

_DIGEST = hashlib.sha256().digest_size
_GENERATOR = Path(__file__).parent
_OTHER = {"cpu": "gpu", "gpu": "cpu"}  # folders that import nothing of each other


@cache
def generator_version(device: str) -> str:
    """A digest of everything besides a kernel's IR that its code for a `device`, "cpu" or "gpu",
    depends on."""
    digest = hashlib.sha256(f"llvmlite {llvmlite.__version__}\n{bindings_identity()}".encode())
    other = _GENERATOR / _OTHER[device]
    for path in sorted(_GENERATOR.rglob("*.py")):
        if other not in path.parents:
            digest.update(path.read_bytes())
    return digest.hexdigest()


class KernelCache:
    """Entries in a folder. A folder that cannot be read or written is empty and stays so."""

    def __init__(self, folder: Path | None = None, *, device: str = "cpu") -> None:
        self.folder = folder or cache_folder() / "kernels"
        self.device = device
        self._stored = 0  # bytes

    def key(self, *parts: str) -> str:
        """The name of the entry for what `parts` say."""
        text = "\0".join((generator_version(self.device), *parts))
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> bytes | None:
        """The entry, None if there is none."""
        path = self.folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, content = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used just now
        return content

    def put(self, key: str, content: bytes) -> None:
        """Store an entry, whole or not at all."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            try:
                with open(handle, "wb") as file:
                    file.write(hashlib.sha256(content).digest() + content)
                os.replace(name, self.folder / key)
            except BaseException:
                os.unlink(name)
                raise
            self._stored += len(content)

    def trim(self) -> None:
        """Where any was stored: of more entries or bytes than the limits the least recently used
        go, until three quarters of both are left."""
        if not self._stored:
            return
        with contextlib.suppress(OSError):  # another process trims too
            entries = list(os.scandir(self.folder))
            if len(entries) <= LIMIT and self._stored < _MUCH:
                return
            found = [(entry.stat(), entry.path) for entry in entries]
            count, size = len(found), sum(status.st_size for status, _ in found)
            if count <= LIMIT and size <= LIMIT_BYTES:
                return
            for status, path in sorted(found, key=lambda each: each[0].st_mtime):
                if count <= LIMIT * 3 // 4 and size <= LIMIT_BYTES * 3 // 4:
                    return
                os.unlink(path)
                count, size = count - 1, size - status.st_size
