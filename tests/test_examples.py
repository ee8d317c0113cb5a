"""The C programs under examples/: compiled, and run on a small model."""

from __future__ import annotations

from pathlib import Path

import handmade
import pytest
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.shim import SHIM_DIRECTORY
from handmade import run_program

EXAMPLES = Path(__file__).parent.parent / "examples"
STRICT = ("-Wall", "-Wextra", "-Werror", f"-I{SHIM_DIRECTORY}")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")

    def compiled(name: str, *flags: str) -> Path:
        find_compiler().run(
            [*STRICT, *flags, EXAMPLES / f"{name}.c", "-ldl", "-o", folder / name],
            directory=folder,
            purpose=f"compile {name}.c",
        )
        return folder / name

    return compiled


@pytest.mark.parametrize("standard", ["-std=c99", "-std=gnu17"])
def test_minimal(program, standard: str) -> None:
    result = run_program([program("minimal", standard), handmade.layer(), "3"])
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "input x: rows 16",
        "input index: rows",
        "input past: 1 2 past 4",
        "input step: 1 2 new 4",
        "output y: rows 16",
        "output next: rows",
        "output present: 1 2 ? 4",
        "output total:",
        "y [3, 16] 0 0.125 0.25 0.375",
        "next [3]",
        "present [1, 2, 6, 4] 0 0 0 0",
        "total [] 0",
    ]


def test_minimal_reports_errors(program) -> None:
    minimal = program("minimal")
    result = run_program([minimal, handmade.layer()], ABQC_ISA="sse9")
    assert result.returncode == 1 and "unknown instruction set 'sse9'" in result.stderr
    result = run_program([minimal, handmade.layer(), "0"])
    assert result.returncode == 1 and result.stderr == "error 7: there are no rows\n"
    result = run_program([minimal, minimal])
    assert result.returncode == 1
    assert run_program([minimal, "/no/such/model.so"]).returncode == 1
    assert run_program([minimal]).returncode == 2


def test_inplace_cache(program) -> None:
    result = run_program([program("inplace_cache"), handmade.layer(), "20"])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "20 steps, caches in place\n"


def test_header_is_plain_cplusplus_too(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text('#include "abqc.h"\nint main() { return ABQC_OK; }\n')
    find_compiler().run(
        ["-x", "c++", *STRICT, "-pedantic", "-c", "main.cpp"],
        directory=tmp_path,
        purpose="compile the header",
    )
