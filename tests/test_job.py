"""A compile whose process dies or is interrupted is an error of the caller's, not its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from abqc.compiler import job
from abqc.compiler.driver import compile_file
from abqc.compiler.fork_client import Server
from abqc.errors import CompileError, PerformanceWarning, RecipeError

Pretend = Callable[[str], Server]


@pytest.fixture
def request_(tmp_path: Path) -> job.Request:
    work = tmp_path / "work"
    work.mkdir()
    return job.Request(Path("model.onnx"), "none", "cpu", tmp_path / "model.so", work)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pretend]:
    """A server whose work is the given body of `def work(request, say)`."""
    servers: list[Server] = []

    def serve(body: str) -> Server:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        imports = "import os, signal, sys, time\n"
        (tmp_path / "pretended.py").write_text(f"{imports}def work(request, say):\n{lines}")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        servers.append(Server("pretended:work"))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def ignore(step: str, done: int, total: int) -> None: ...


def interrupt(step: str, done: int, total: int) -> None:
    raise KeyboardInterrupt


def is_gone(pid: int) -> bool:
    """Whether a process has ended, within ten seconds."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


def test_crash_names_signal_and_pass(pretend: Pretend, request_: job.Request) -> None:
    server = pretend(
        'say({"pass": "pass outline-kernels"})\n'
        'os.write(2, b"Assertion failed")\n'
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    with pytest.raises(CompileError, match=r"died \(SIGSEGV\) in pass outline-kernels: Assertion"):
        job.run(request_, ignore, server)
    assert not request_.work.exists()


def test_exception_that_nobody_expects_is_shown(pretend: Pretend, request_: job.Request) -> None:
    with pytest.raises(CompileError, match=r"died \(exit code 1\) in its start: ValueError: odd"):
        job.run(request_, ignore, pretend('raise ValueError("odd")'))


def test_error_comes_through_with_its_node(pretend: Pretend, request_: job.Request) -> None:
    error = {
        "type": "RecipeError",
        "message": "no kernel",
        "node": "mm1",
        "hint": None,
        "traceback": "there",
    }
    with pytest.raises(RecipeError) as caught:
        job.run(request_, ignore, pretend(f"say({{'error': {error!r}}})"))
    assert caught.value.node == "mm1"
    assert caught.value.__notes__ == ["there"]


def test_progress_and_notes_are_handed_on(pretend: Pretend, request_: job.Request) -> None:
    server = pretend('say({"progress": ["link", 1, 1]})\nsay({"done": ["a"]})')
    steps: list[tuple[str, int, int]] = []
    notes = job.run(request_, lambda *step: steps.append(step), server)
    assert (steps, notes) == ([("link", 1, 1)], ["a"])


def test_interrupted_caller_ends_the_process_and_its_children(
    pretend: Pretend, request_: job.Request, tmp_path: Path
) -> None:
    """As of a Ctrl-C: the job, what it has forked and what it has written are gone at once."""
    server = pretend(
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        "open(request.partial, 'w').close()\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child}}')\n"
        'say({"progress": ["import", 0, 1]})\n'
        "time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        job.run(request_, interrupt, server)
    job_pid, child_pid = map(int, (tmp_path / "pids").read_text().split())
    assert not Path(f"/proc/{job_pid}").exists()
    assert is_gone(child_pid)
    assert not request_.partial.exists()
    assert not request_.work.exists()


def test_notes_are_warnings_unless_someone_takes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(job, "run", lambda request, progress: ["node 'a' is slow"])
    with pytest.warns(PerformanceWarning, match="node 'a' is slow"):
        compile_file("model.onnx", output=tmp_path / "model.so")
    taken: list[str] = []
    compile_file("model.onnx", output=tmp_path / "model.so", note=taken.append)
    assert taken == ["node 'a' is slow"]


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(CompileError, match=r"cannot make a temporary folder.*TMPDIR"):
        compile_file("model.onnx", output=tmp_path / "model.so")


def test_job_sees_the_present_environment(
    pretend: Pretend, request_: job.Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server is older than what its client has set since."""
    server = pretend('say({"done": [os.environ.get("ABQC_X"), os.getcwd(), oct(os.umask(0))]})')
    job.run(request_, ignore, server)
    monkeypatch.setenv("ABQC_X", "late")
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o77)
    try:
        assert job.run(request_, ignore, server) == ["late", str(tmp_path), "0o77"]
    finally:
        os.umask(mask)


def test_signal_names_are_those_of_the_system() -> None:
    assert job._how(-signal.SIGABRT) == "SIGABRT"
    assert job._how(None) == "with its server"
