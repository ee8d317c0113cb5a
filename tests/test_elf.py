"""Objects written by codegen/elf.py: what the linker makes of them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.elf import FileRange, write_data_object
from abqc.codegen.toolchain import find_compiler
from handmade import c_object, run_program


def library(folder: Path, *objects: Path) -> ctypes.CDLL:
    find_compiler().run(
        ["-shared", "-o", "lib.so", *objects], directory=folder, purpose="link the test"
    )
    return ctypes.CDLL(str(folder / "lib.so"))


def test_blobs_arrive_aligned_and_whole(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 1000)
    entries = [
        ("w_array", np.arange(1000, dtype=np.int16)),
        ("w_bytes", b"abc"),
        ("w_empty", b""),
        ("w_strided", np.arange(10, dtype=np.int32)[::2]),
        ("w_range", FileRange(tmp_path / "source", 5, 100_001)),
    ]
    write_data_object(tmp_path / "weights.o", entries)
    pointers = ", ".join(name for name, _ in entries)
    source = f"extern const char {pointers.replace(', ', '[], ')}[];\n"
    source += f"const char *all[] = {{{pointers}}};\n"
    lib = library(tmp_path, c_object(tmp_path, "table", source), tmp_path / "weights.o")
    addresses = (ctypes.c_void_p * len(entries)).in_dll(lib, "all")
    expected = [
        np.arange(1000, dtype=np.int16).tobytes(),
        b"abc",
        b"",
        np.arange(0, 10, 2, dtype=np.int32).tobytes(),
        (bytes(range(256)) * 1000)[5:100_006],
    ]
    for address, content in zip(addresses, expected, strict=True):
        assert address % 64 == 0
        assert ctypes.string_at(address, len(content)) == content


def test_symbols_are_hidden(tmp_path: Path) -> None:
    write_data_object(tmp_path / "weights.o", [("w_hidden", b"abc")])
    lib = library(tmp_path, tmp_path / "weights.o")
    with pytest.raises(ValueError, match="w_hidden"):
        ctypes.c_char.in_dll(lib, "w_hidden")


def test_entries_may_come_from_a_generator(tmp_path: Path) -> None:
    alive: list[str] = []

    def blobs():
        for i in range(3):
            alive.append(f"w{i}")
            yield f"w{i}", np.full(100, i, np.uint8)

    assert write_data_object(tmp_path / "weights.o", blobs()) == 2 * 128 + 100
    assert alive == ["w0", "w1", "w2"]


def test_no_executable_stack(tmp_path: Path) -> None:
    write_data_object(tmp_path / "weights.o", [("w", b"abc")])
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    find_compiler().run(
        ["-Wl,--fatal-warnings", "main.c", "weights.o", "-o", "main"],
        directory=tmp_path,
        purpose="link the test",
    )


def test_short_file_range_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"1234")
    with pytest.raises(EOFError):
        write_data_object(tmp_path / "w.o", [("w", FileRange(tmp_path / "source", 2, 3))])


@pytest.mark.slow
def test_beyond_two_gigabytes(tmp_path: Path) -> None:
    """Sparse input; code reaches both ends through the global offset table."""
    size = (5 << 30) // 2
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 3 * size:
        pytest.skip("not enough disk")
    entries = [("w_huge", FileRange(tmp_path / "zeros", 0, size)), ("w_after", b"after")]
    write_data_object(tmp_path / "weights.o", entries)
    source = f"""
    #include <stdio.h>
    extern const char w_huge[], w_after[];
    int main(void) {{ printf("%s %s", w_huge + {size - 3}l, w_after); }}
    """.replace("%s %s", "%.3s %.5s")
    main = c_object(tmp_path, "main", source)
    find_compiler().run([main, "weights.o", "-o", "main"], directory=tmp_path, purpose="link")
    assert run_program([tmp_path / "main"]).stdout == "end after"
