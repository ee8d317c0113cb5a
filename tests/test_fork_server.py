"""The server that jobs are forked from: started once, replaced when it dies, no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from abqc.compiler.fork_client import Server
from abqc.errors import CompileError

WORK = """
import os, time

def work(request, say):
    say({"pid": os.getpid(), "server": os.getppid(), "request": request})
    if request == "sleep":
        time.sleep(60)
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    server = Server("some_work:work")
    yield server
    server.stop()


def said(server: Server, request: object) -> dict[str, object]:
    with server.start(request) as worker:
        (message,) = worker
        assert worker.status == 0
        return message


def gone(pid: object) -> bool:
    """Whether a process has ended, within ten seconds; a zombie has not."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


def test_every_job_has_a_process_of_its_own(server: Server) -> None:
    first, second = said(server, 1), said(server, {"x": (2, None)})
    assert first["pid"] != second["pid"]
    assert first["server"] == second["server"] != os.getpid()
    assert second["request"] == {"x": [2, None]}


def test_what_some_jobs_need_is_prepared_for_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparing = """
done = []

def fails():
    done.append("fails")
    raise ValueError

PREPARATIONS = (fails, lambda: done.append("works"))

def work(request, say):
    say({"done": done})
"""
    (tmp_path / "preparing_work.py").write_text(preparing)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    server = Server("preparing_work:work")
    try:
        assert [said(server, job) for job in range(2)] == [{"done": []}] * 2
        for _ in range(100):
            if said(server, 2) == {"done": ["fails", "works"]}:
                return
            time.sleep(0.02)
        raise AssertionError("nothing was prepared")
    finally:
        server.stop()


def test_jobs_of_several_threads(server: Server) -> None:
    answers: list[object] = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(said(server, i)["request"]))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(8))  # type: ignore[type-var]


def test_job_that_is_left_is_killed(server: Server) -> None:
    with server.start("sleep") as worker:
        message = next(iter(worker))
    assert not Path(f"/proc/{message['pid']}").exists()
    assert said(server, 1)["server"] == message["server"]


def test_scratch_is_removed_when_a_job_ends(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    (folder / "deep").mkdir(parents=True)
    with server.start(1, scratch=[folder, tmp_path / "absent"]) as worker:
        assert len(list(worker)) == 1
    assert not folder.exists()


def test_server_that_was_killed_takes_its_jobs_along_and_is_replaced(server: Server) -> None:
    with server.start("sleep") as worker:
        messages = iter(worker)
        message = next(messages)
        os.kill(int(message["server"]), signal.SIGKILL)
        assert list(messages) == []
        assert worker.status is None
    assert gone(message["pid"])
    assert said(server, 1)["server"] != message["server"]


def test_no_descriptor_is_leaked(server: Server) -> None:
    said(server, 0)
    before = os.listdir("/proc/self/fd")
    for i in range(5):
        said(server, i)
    assert os.listdir("/proc/self/fd") == before


def test_server_ends_with_its_client(server: Server, tmp_path: Path) -> None:
    """However the client ends: by itself, or killed while a job runs."""
    code = (
        "from abqc.compiler.fork_client import Server\n"
        "import os, pathlib, signal, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with Server('some_work:work').start(sys.argv[2], scratch=[folder]) as worker:\n"
        "    message = next(iter(worker))\n"
        "    print(message['server'], flush=True)\n"
        "    if sys.argv[2] == 'sleep': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for request, status in (("once", 0), ("sleep", -signal.SIGKILL)):
        folder = tmp_path / request
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), request], capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert gone(done.stdout.strip())
        assert not folder.exists()


def test_fork_of_the_client_gets_a_server_of_its_own(server: Server) -> None:
    ours = said(server, 1)["server"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(said(server, 2)["server"]).encode())
            server.stop()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    assert theirs.isdecimal()
    assert theirs != str(ours)
    assert gone(theirs)
    assert said(server, 3)["server"] == ours


def test_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("no_such_module:work")
    with server.start(1) as worker:
        assert list(worker) == []
        assert "no_such_module" in worker.log()
    server.stop()


def test_no_server_without_its_program(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CompileError, match="cannot start the compiler's process"):
        server.start(1)
