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
        source = np.ascontiguousarray(source).reshape(-1).view(np.uint8).data
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


def _finish(
    file: BinaryIO, data_size: int, symbols: bytearray, names: _Strings, large: bool
) -> None:
    """Everything after the data, then the header."""
    table = _SectionTable()
    if large:
        flags = _SHF_ALLOC | _SHF_X86_64_LARGE
        table.add(".lrodata.abqc", _SHT_PROGBITS, ALIGNMENT, data_size, flags, align=ALIGNMENT)
    else:
        table.add(".rodata.abqc", _SHT_PROGBITS, ALIGNMENT, data_size, _SHF_ALLOC, align=ALIGNMENT)
    start = _append(file, symbols)
    table.add(
        ".symtab", _SHT_SYMTAB, start, len(symbols), link=3, info=1, align=8, entry=_SYMBOL.size
    )
    table.add(".strtab", _SHT_STRTAB, _append(file, names.data), len(names.data))
    table.add(".note.GNU-stack", _SHT_PROGBITS, file.tell(), 0)  # the stack is not executable
    table.add_own_names(file.tell() + -file.tell() % ALIGNMENT)
    _append(file, table.names.data)
    table_at = _append(file, b"".join(table.rows))
    file.seek(0)
    file.write(_header(table_at, len(table.rows)))


class _SectionTable:
    """Section headers; the first is null, the last one holds their names."""

    def __init__(self) -> None:
        self.names = _Strings()
        self.rows = [bytes(_SECTION.size)]

    def add(
        self,
        name: str,
        kind: int,
        offset: int,
        size: int,
        flags: int = 0,
        *,
        link: int = 0,
        info: int = 0,
        align: int = 1,
        entry: int = 0,
    ) -> None:
        self.rows.append(
            _SECTION.pack(
                self.names.add(name), kind, flags, 0, offset, size, link, info, align, entry
            )
        )

    def add_own_names(self, offset: int) -> None:
        name = self.names.add(".shstrtab")
        size = len(self.names.data)
        self.rows.append(_SECTION.pack(name, _SHT_STRTAB, 0, 0, offset, size, 0, 0, 1, 0))


def _append(file: BinaryIO, data: bytes | bytearray) -> int:
    """Write at the next aligned position, which is returned."""
    position = _align(file)
    file.write(data)
    return position


def _header(table_at: int, count: int) -> bytes:
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)  # 64 bits, little-endian, System V
    return _HEADER.pack(
        ident, _ET_REL, _EM_X86_64, 1, 0, 0, table_at, 0, _HEADER.size, 0, 0, _SECTION.size, count,
        count - 1,
    )  # fmt: skip


def loaded_bytes(content: bytes) -> int:
    """What an object adds to a program's memory: its code and data, without symbols and names."""
    header = _HEADER.unpack_from(content)
    section_offset, section_count = header[6], header[12]
    sections = (
        _SECTION.unpack_from(content, section_offset + i * _SECTION.size)
        for i in range(section_count)
    )
    return sum(size for _, _, flags, _, _, size, *_ in sections if flags & _SHF_ALLOC)
