"""A failing pass leaves what repeats the failure: the printed line works."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import onnx_models as models
import pytest
from abqc.compiler import failures
from abqc.compiler.build import build
from abqc.compiler.cli import main
from abqc.compiler.job import Request
from abqc.errors import CompileError
from abqc.passes import infrastructure
from abqc.passes.infrastructure import PassFailure, find_pass


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def failing_build(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CompileError:
    """The error of a compile in which the pass `name` fails halfway."""
    work = tmp_path / "work"
    work.mkdir()
    model = models.save(models.mlp(), tmp_path)
    request = Request(model, "w4a8", "cpu", tmp_path / "model.so", work)
    original = find_pass(name)
    assert original is not None

    def fail(module: Any, unit: Any) -> None:
        original(module, unit)
        raise ValueError("as if by accident")

    with monkeypatch.context() as patch:
        patch.setitem(infrastructure.REGISTRY, name, fail)
        with pytest.raises(CompileError) as caught:
            build(request, lambda *step: None, lambda name: None)
    return caught.value


def line_of(error: CompileError) -> list[str]:
    """The arguments of the `abqc` line that repeats a failure."""
    assert error.hint is not None
    return shlex.split(error.hint.partition("repeat with: abqc ")[2])


@pytest.mark.parametrize("name", ["quantize", "pack-layouts", "lower-abq", "insert-frees"])
def test_the_line_repeats_the_pass(
    name: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The IR is that before the pass, though it failed when it had rewritten it."""
    error = failing_build(name, monkeypatch, tmp_path)
    assert f"pass {name} failed: ValueError: as if by accident; it ran after" in error.message
    assert main(line_of(error)) == 0
    assert "func.func @main" in capsys.readouterr().out
    monkeypatch.setitem(infrastructure.REGISTRY, name, lambda module, unit: 1 / 0)
    assert main(line_of(error)) == 1
    assert f"pass {name} failed: ZeroDivisionError" in capsys.readouterr().err


def test_model_that_is_gone(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = failing_build("quantize", monkeypatch, tmp_path)
    (tmp_path / "model.onnx").unlink()
    assert main(line_of(error)) == 1
    assert "model.onnx is gone: the passes need its weights" in capsys.readouterr().err


def test_file_that_is_no_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unit").write_text("nonsense")
    (tmp_path / "x.mlir").write_text("module {}")
    assert main(["opt", str(tmp_path / "x.mlir"), "--unit", str(tmp_path / "unit")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_opt_keeps_what_a_pass_was_given(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.mlir").write_text("module {}")
    assert main(["opt", str(tmp_path / "x.mlir"), "--passes", "canonicalize,no-such-pass"]) == 1
    said = capsys.readouterr().err
    assert f"the IR is in {cache}" in said and "--passes 'no-such-pass'" in said


def test_only_the_newest_failures_are_kept(cache: Path) -> None:
    for i in range(failures.KEPT + 3):
        failures.keep(PassFailure("failed", f"pass-{i}", "module {}"))
    kept = sorted(path.name.partition("pass-")[2] for path in (cache / "failed").iterdir())
    assert kept == sorted(str(i) for i in range(3, failures.KEPT + 3))


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_CACHE", "/proc/none")
    failure = PassFailure("failed", "quantize", "module {}")
    failures.keep(failure)
    assert failure.hint is not None
    assert failure.hint.startswith("its IR could not be kept")
