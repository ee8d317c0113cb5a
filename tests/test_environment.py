"""Environment variables: one table, and nothing reads others."""

from __future__ import annotations

import re
from pathlib import Path

import abqc
import pytest
from abqc.runtime.environment import CC, CUDA_GRAPHS, NUM_THREADS, VARIABLES, cache_folder

ROOT = Path(abqc.__file__).parent
NAMES = {variable.name for variable in VARIABLES}


def test_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, value in (("3", 3), ("0", None), ("-1", None), ("x", None), ("", None)):
        monkeypatch.setenv("ABQC_NUM_THREADS", text)
        assert NUM_THREADS.get() == value
    monkeypatch.setenv("ABQC_CUDA_GRAPHS", "0")
    assert CUDA_GRAPHS.get() is False
    monkeypatch.setenv("CC", "clang -m64")
    assert CC.get() == ["clang", "-m64"]
    monkeypatch.delenv("CC")
    assert CC.get() is None and CC.text == ""


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("ABQC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/abqc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "abqc"


def test_python_reads_them_through_the_table() -> None:
    folders = ("dialects", "runtime", "costmodel", "passes", "codegen", "compiler")
    readers = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\benviron\b|\bgetenv\b", path.read_text())
    ]
    assert readers == ["runtime/environment.py"]


def test_the_shim_reads_variables_of_the_table() -> None:
    text = "".join(path.read_text() for path in (ROOT / "runtime" / "shim").glob("*.c"))
    assert {"ABQC_NUM_THREADS"} < set(re.findall(r'getenv\("(\w+)"\)', text)) <= NAMES


def test_users_can_read_about_them() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE)) == NAMES
