"""The file around the library: an ELF image, then a trailer that says what it is.

    ELF image | manifest (JSON, UTF-8) | sizes of both, CRC-32 of all before, version, magic

The trailer is read, and the checksum compared, before anything is opened or executed. The checksum
finds damage, not malice: an artifact is code, to be trusted like any program.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ArtifactError

FORMAT_VERSION = 1
MAGIC = b"ABQC\r\n\x1a\n"
_SIZES = struct.Struct("<QQ")  # ELF image, manifest
_END = struct.Struct("<II8s")  # checksum, format version, magic
FOOTER_SIZE = _SIZES.size + _END.size
_ELF_MAGIC = b"\x7fELF"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Trailer:
    """What stands after the ELF image; `checksum` is of all bytes before it."""

    elf_size: int
    manifest_size: int
    checksum: int


def append_trailer(path: Path, manifest: dict[str, Any]) -> None:
    """Turn a linked library into an artifact, in place."""
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
    with open(path, "r+b") as file:
        checksum = 0
        for block in _blocks(file, os.fstat(file.fileno()).st_size):
            checksum = zlib.crc32(block, checksum)
        tail = text + _SIZES.pack(file.tell(), len(text))
        checksum = zlib.crc32(tail, checksum)
        file.write(tail + _END.pack(checksum, FORMAT_VERSION, MAGIC))


def read_trailer(file: BinaryIO, path: Path) -> Trailer:
    """The trailer of an open file; ArtifactError unless the sizes and the version are right."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(len(_ELF_MAGIC))
    if size < FOOTER_SIZE or start != _ELF_MAGIC:
        raise ArtifactError(f"'{path}' is not a model compiled by abqc")
    file.seek(size - FOOTER_SIZE)
    elf_size, manifest_size = _SIZES.unpack(file.read(_SIZES.size))
    checksum, version, magic = _END.unpack(file.read(_END.size))
    if magic != MAGIC:
        raise ArtifactError(
            f"'{path}' is a library without abqc's trailer",
            hint="it is truncated, changed by another tool (strip?), or no compiled model",
        )
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"'{path}' has artifact format {version}, this abqc reads {FORMAT_VERSION}",
            hint="compile the model again",
        )
    if elf_size + manifest_size + FOOTER_SIZE != size:
        raise ArtifactError(f"'{path}' is {size} bytes long, its trailer says otherwise: damaged")
    return Trailer(elf_size, manifest_size, checksum)


def verify_checksum(file: BinaryIO, path: Path, trailer: Trailer) -> None:
    """ArtifactError unless every byte is as it was written."""
    file.seek(0)
    checksum = 0
    for block in _blocks(file, trailer.elf_size + trailer.manifest_size + _SIZES.size):
        checksum = zlib.crc32(block, checksum)
    if checksum != trailer.checksum:
        raise ArtifactError(f"'{path}' was altered: its checksum is wrong")


def read_manifest(file: BinaryIO, path: Path, trailer: Trailer) -> dict[str, Any]:
    """The manifest of an open artifact."""
    file.seek(trailer.elf_size)
    try:
        return json.loads(file.read(trailer.manifest_size))
    except ValueError as error:
        raise ArtifactError(f"'{path}' has a manifest that is not JSON: damaged") from error


def manifest_of(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of an artifact, without opening the library."""
    path = Path(path)
    with open_artifact(path) as file:
        trailer = read_trailer(file, path)
        if verify:
            verify_checksum(file, path, trailer)
        return read_manifest(file, path, trailer)


def open_artifact(path: Path) -> BinaryIO:
    """The file, opened for reading; ArtifactError where that fails."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "is a directory")
        return open(path, "rb")
    except OSError as error:
        raise ArtifactError(f"cannot open '{path}': {error.strerror}") from error


def _blocks(file: BinaryIO, size: int) -> Iterator[memoryview]:
    """`size` bytes from the file's position on, in pieces that are valid until the next one."""
    view = memoryview(bytearray(_BLOCK))
    while size > 0:
        count = file.readinto(view[: min(size, _BLOCK)])  # type: ignore[attr-defined]
        if not count:
            return
        yield view[:count]
        size -= count
