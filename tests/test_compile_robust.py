"""A compile that is interrupted, killed or out of room leaves nothing, and says so in one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx_models as models
import pytest

# Run as a program is: without the working directory on the path.
ABQC = (sys.executable, "-P", "-m", "abqc.compiler.cli")


class Place:
    """A model, a folder for the library, one for temporary files, and a C compiler to play with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = models.save(models.mlp(), folder)
        self.output, self.temporary = folder / "out", folder / "temporary"
        self.output.mkdir()
        self.temporary.mkdir()
        self.environment = {**os.environ, "TMPDIR": str(self.temporary)}

    def compiler(self, when_linking: str, folder: Path | None = None) -> None:
        """Let CC do `when_linking` in place of linking the model. For a script in another `folder`
        the runtime may be compiled already."""
        script = (folder or self.folder) / "compiler"
        script.write_text(
            '#!/bin/sh\ncase "$*" in *exports.map*) eval "$WHEN_LINKING";; esac\nexec cc "$@"\n'
        )
        script.chmod(0o755)
        self.environment |= {"CC": str(script), "WHEN_LINKING": when_linking}

    @property
    def command(self) -> list[str]:
        arguments = ["compile", self.model, "-o", self.output / "model.so", "--quant", "w8a8"]
        return [*ABQC, *map(str, arguments)]

    def run(self, *before: str) -> subprocess.CompletedProcess[str]:
        """Compile; `before` is a command that runs the rest of its line."""
        return subprocess.run(
            [*before, *self.command],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    def assert_clean(self) -> None:
        """Nothing but the model is left, within ten seconds."""
        for _ in range(100):
            left = [*self.output.iterdir(), *self.temporary.iterdir()]
            if not left:
                return
            time.sleep(0.1)
        raise AssertionError(left)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripts")


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The error, which is one line after the lines of progress."""
    assert done.returncode == 1, done
    errors = [line for line in done.stderr.splitlines() if not line.lstrip()[:1].isdigit()]
    assert len(errors) == 1, done.stderr
    return errors[0]


def wait_for(path: Path) -> str:
    for _ in range(1200):
        if path.exists() and path.read_text():
            return path.read_text().strip()
        time.sleep(0.1)
    raise AssertionError(f"{path} has not come into being")


def is_gone(pid: str) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_interrupted_while_linking(
    place: Place, scripts: Path, number: signal.Signals, status: int
) -> None:
    """The linker is ended too, and the unfinished library is gone."""
    pid_file = place.folder / "pid"
    place.compiler(f"echo $$ > {pid_file}; exec sleep 100", scripts)
    process = subprocess.Popen(
        place.command, env=place.environment, stderr=subprocess.PIPE, text=True
    )
    pid = wait_for(pid_file)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == status
    assert is_gone(pid)
    place.assert_clean()
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "abqc: error: interrupted"


def test_linker_that_is_killed(place: Place, scripts: Path) -> None:
    place.compiler("kill -KILL $$", scripts)
    assert "failed to link the model: it was ended by SIGKILL" in error_of(place.run())
    place.assert_clean()


def test_linker_that_says_nothing(place: Place, scripts: Path) -> None:
    place.compiler("exit 3", scripts)
    assert "failed to link the model: exit code 3, no message" in error_of(place.run())
    place.assert_clean()


@pytest.mark.parametrize("kilobytes", [1, 16])
def test_files_that_may_not_grow(place: Place, kilobytes: int) -> None:
    """As on a full disk, at several places: weights, objects, the library."""
    place.compiler(":")
    limit = f'ulimit -f {kilobytes}; exec "$@"'
    error_of(place.run("bash", "-c", limit, "-"))
    place.assert_clean()


@pytest.mark.parametrize(
    ("which", "kilobytes"), [("output", 4), ("output", 40), ("temporary", 4), ("temporary", 60)]
)
def test_full_disk(place: Place, which: str, kilobytes: int) -> None:
    """Needs a file system of its own, which it gets in a user namespace."""
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("this system gives no user namespaces")
    folder = getattr(place, which)
    script = (
        f'mount -t tmpfs -o size={kilobytes}k none {folder} && "$@"; status=$?; '
        f"ls -A {folder} >&3; exit $status"
    )
    left = place.folder / "left"
    done = place.run(*namespace, "bash", "-c", f"exec 3> {left}; {script}", "-")
    assert "no space left" in error_of(done).lower()
    assert left.read_text() == ""
    place.assert_clean()


@pytest.mark.parametrize("cache", [pytest.param("/proc/none", marks=pytest.mark.slow), "/dev/null"])
def test_cache_that_cannot_be_written(place: Place, cache: str) -> None:
    place.environment["ABQC_CACHE"] = cache
    assert place.run().returncode == 0
    assert [path.name for path in place.output.iterdir()] == ["model.so"]


def test_modules_of_the_working_directory_are_not_run(place: Place) -> None:
    """A `lark.py` beside the model is not the compiler's."""
    for name in ("lark", "numpy", "onnx", "torch_mlir", "json", "ctypes", "llvmlite"):
        (place.folder / f"{name}.py").write_text(f"open({str(place.folder / 'ran')!r}, 'w')\n")
    assert place.run().returncode == 0
    assert not (place.folder / "ran").exists()
