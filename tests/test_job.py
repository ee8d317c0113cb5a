"""A compile whose process dies or says nonsense is an error of the caller's, not its end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from abqc.compiler import job
from abqc.compiler.driver import compile_file
from abqc.errors import CompileError, PerformanceWarning, RecipeError

PROGRAM = "#!/bin/sh\ncat > /dev/null\n"


@pytest.fixture
def request_(tmp_path: Path) -> job.Request:
    return job.Request(Path("model.onnx"), "none", "cpu", tmp_path / "model.so", tmp_path)


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Put a shell script in the place of the compiler's process."""
    program = tmp_path / "compiler"
    program.write_text(PROGRAM + script)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def ignore(step: str, done: int, total: int) -> None: ...


def test_crash_names_signal_and_pass(monkeypatch, tmp_path, request_):
    script = """
        echo 'noise of a library'
        echo '{"pass": "pass outline-kernels"}'
        echo 'Assertion failed' >&2
        kill -SEGV $$
    """
    pretend(monkeypatch, tmp_path, script)
    with pytest.raises(CompileError, match=r"died \(SIGSEGV\) in pass outline-kernels: Assertion"):
        job.run(request_, ignore)


def test_error_comes_through_with_its_node(monkeypatch, tmp_path, request_):
    message = (
        '{"error": {"type": "RecipeError", "message": "no kernel", "node": "mm1", "hint": null, '
        '"traceback": "there"}}'
    )
    pretend(monkeypatch, tmp_path, f"echo '{message}'")
    with pytest.raises(RecipeError) as caught:
        job.run(request_, ignore)
    assert caught.value.node == "mm1"
    assert caught.value.__notes__ == ["there"]


def test_progress_and_notes_are_handed_on(monkeypatch, tmp_path, request_):
    pretend(
        monkeypatch, tmp_path, """echo '{"progress": ["link", 1, 1]}'; echo '{"done": ["a"]}'"""
    )
    steps: list[tuple[str, int, int]] = []
    notes = job.run(request_, lambda *step: steps.append(step))
    assert (steps, notes) == ([("link", 1, 1)], ["a"])


def test_interrupted_caller_ends_the_child(monkeypatch, tmp_path, request_):
    pid = tmp_path / "pid"
    script = f"""echo $$ > {pid}; echo '{{"progress": ["import", 0, 1]}}'; exec sleep 60"""
    pretend(monkeypatch, tmp_path, script)

    def interrupt(step: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(request_, interrupt)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_notes_are_warnings_unless_someone_takes_them(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "run", lambda request, progress: ["node 'a' is slow"])
    with pytest.warns(PerformanceWarning, match="node 'a' is slow"):
        compile_file("model.onnx", output=tmp_path / "model.so")
    taken: list[str] = []
    compile_file("model.onnx", output=tmp_path / "model.so", note=taken.append)
    assert taken == ["node 'a' is slow"]
