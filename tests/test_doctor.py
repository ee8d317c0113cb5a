"""`abqc doctor`: everything is found here; what is missing is named with its remedy."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
from abqc.compiler import doctor
from abqc.runtime.ptx.driver import PtxDriver


def line_of(text: str, subject: str) -> str:
    """The mark (ok, MISSING, -) and the text of a finding."""
    return next(line for line in text.splitlines() if line[9:].startswith(f"{subject} "))


def test_all_is_well_here() -> None:
    text, ok = doctor.report()
    assert ok, text
    for subject in ("platform", "python", *doctor.PACKAGES, "C compiler", "threads", "processor"):
        assert line_of(text, subject).startswith("ok")


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    text, ok = doctor.report()
    assert not ok
    assert line_of(text, "C compiler").startswith("MISSING")


def test_compiler_that_does_not_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    text, ok = doctor.report()
    assert not ok
    assert "apt: gcc libc6-dev" in line_of(text, "C compiler")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor._version
    missing = ("onnx", "onnxruntime")
    monkeypatch.setattr(doctor, "_version", lambda n: None if n in missing else known(n))
    text, ok = doctor.report()
    assert not ok
    assert "pip install onnx" in line_of(text, "onnx")
    assert line_of(text, "onnxruntime").startswith("-")


def test_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_ISA", "plain")
    assert "ABQC_ISA=plain" in line_of(doctor.report()[0], "settings")


def test_a_gpu_is_named_by_what_it_can_run() -> None:
    machine = PtxDriver((8, 6), memory_bytes=1 << 20)
    lookup = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(machine.resolver)
    (finding,) = doctor._gpu(lambda name: lookup(name.encode()))
    assert finding.found == "PTX machine, compute capability 8.6, CUDA 13.0"
    (finding,) = doctor._gpu(lambda name: None)
    assert finding.found is None and "--device ptx-vm" in finding.remedy


def test_needs_no_mlir() -> None:
    code = "import sys; sys.modules['torch_mlir'] = None\n"
    code += "from abqc.compiler.doctor import report; report()"
    subprocess.run([sys.executable, "-c", code], check=True)
