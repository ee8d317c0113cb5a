"""Weights as an ELF object: read-only data with hidden symbols, written straight to the file.

Relocatable ELF-64 for x86-64 (System V ABI, gABI chapter 4, and the AMD64 supplement for the large
sections). Nothing is held in memory but the symbol table: entries may come from a generator that
makes one blob at a time, and file ranges are copied by the kernel.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

ALIGNMENT = 64
# Beyond 2 GB of data, 32-bit relocations between code and data overflow; large sections lie apart.
LARGE_BYTES = 1 << 30

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")

_ET_REL, _EM_X86_64 = 1, 62
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB = 1, 2, 3
_SHF_ALLOC, _SHF_X86_64_LARGE = 0x2, 0x10000000
_STB_GLOBAL_STT_OBJECT = 1 << 4 | 1
_STV_HIDDEN = 2
_DATA_SECTION = 1  # index of the data in the section table


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file, copied without passing through this process."""

    path: Path
    offset: int
    size: int


Source = np.ndarray | bytes | bytearray | memoryview | FileRange


class _Strings:
    """A string table and the offsets of its strings."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def add(self, text: str) -> int:
        offset = len(self.data)
        self.data += text.encode() + b"\0"
        return offset


def write_data_object(
    path: str | Path, entries: Iterable[tuple[str, Source]], *, large: bool | None = None
) -> int:
    """Write an object with one hidden, 64-byte aligned symbol for every entry; return the bytes.

    `large` puts the data into a large section (None: when it exceeds 1 GB). An artifact whose
    objects exceed that together needs it in each. Code must then reach the symbols through
    64-bit addresses (the global offset table, or pointers in data).
    """
    names = _Strings()
    symbols = bytearray(_SYMBOL.size)  # the first symbol is null
    with open(path, "wb") as file:
        file.write(bytes(ALIGNMENT))  # the header comes last, when all is known
        for name, source in entries:
            start = _align(file)
            size = _write(file, source)
            symbols += _SYMBOL.pack(
                names.add(name),
                _STB_GLOBAL_STT_OBJECT,
                _STV_HIDDEN,
                _DATA_SECTION,
                start - ALIGNMENT,
                size,
            )
        data_size = file.tell() - ALIGNMENT
        _finish(
            file, data_size, symbols, names, data_size > LARGE_BYTES if large is None else large
        )
    return data_size


def _align(file: BinaryIO) -> int:
    position = file.tell()
    padding = -position % ALIGNMENT
    file.write(bytes(padding))
    return position + padding


def _write(file: BinaryIO, source: Source) -> int:
    if isinstance(source, FileRange):
        return _copy_range(file, source)
    if isinstance(source, np.ndarray):
        source = memoryview(np.ascontiguousarray(source).reshape(-1).view(np.uint8))
    return file.write(source)


def _copy_range(file: BinaryIO, source: FileRange) -> int:
    file.flush()
    with open(source.path, "rb") as origin:
        left, offset = source.size, source.offset
        while left > 0:
            count = _copy_some(origin.fileno(), file, left, offset)
            if count == 0:
                raise EOFError(f"{source.path} ends before byte {source.offset + source.size}")
            left -= count
            offset += count
    return source.size


def _copy_some(origin: int, file: BinaryIO, size: int, offset: int) -> int:
    """Up to `size` bytes to the file's position; the kernel copies where it can."""
    target = file.tell()
    try:
        count = os.copy_file_range(origin, file.fileno(), size, offset, target)
        file.seek(target + count)
        return count
    except OSError:  # other file systems, or a kernel that does not know how
        return file.write(os.pread(origin, min(size, 1 << 24), offset))


def _finish(file: BinaryIO, data_size: int, symbols: bytes, names: _Strings, large: bool) -> None:
    sections = _Strings()
    table = [bytes(_SECTION.size)]  # the first section is null

    def section(
        name: str, kind: int, flags: int, offset: int, size: int, link=0, info=0, align=1, entry=0
    ) -> None:
        table.append(
            _SECTION.pack(
                sections.add(name), kind, flags, 0, offset, size, link, info, align, entry
            )
        )

    def append(data: bytes) -> tuple[int, int]:
        offset = _align(file)
        return offset, file.write(data)

    data_name, flags = (
        (".lrodata.abqc", _SHF_ALLOC | _SHF_X86_64_LARGE) if large else (".rodata.abqc", _SHF_ALLOC)
    )
    section(data_name, _SHT_PROGBITS, flags, ALIGNMENT, data_size, align=ALIGNMENT)
    symbols_at = append(symbols)
    section(".symtab", _SHT_SYMTAB, 0, *symbols_at, link=3, info=1, align=8, entry=_SYMBOL.size)
    section(".strtab", _SHT_STRTAB, 0, *append(names.data))
    section(".note.GNU-stack", _SHT_PROGBITS, 0, file.tell(), 0)  # the stack is not executable
    names_offset = sections.add(".shstrtab")
    offset, size = append(sections.data)
    table.append(_SECTION.pack(names_offset, _SHT_STRTAB, 0, 0, offset, size, 0, 0, 1, 0))
    table_at, _ = append(b"".join(table))
    file.seek(0)
    file.write(_header(table_at, len(table)))


def _header(table_at: int, count: int) -> bytes:
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)  # 64 bits, little-endian, System V
    return _HEADER.pack(
        ident, _ET_REL, _EM_X86_64, 1, 0, 0, table_at, 0, _HEADER.size, 0, 0, _SECTION.size, count,
        count - 1,
    )  # fmt: skip
