"""`pip install .[toolchain]` where there is no C compiler: everything works with ziglang's.

`.ci/run` runs these tests with the system's compilers hidden; they hide them too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DIGITS = Path(__file__).parent / "models" / "data" / "digits_mlp.onnx"

pytest.importorskip("ziglang", reason="the extra `toolchain` is not installed")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No program on the path, and a cache of its own."""
    folder = tmp_path_factory.mktemp("hidden")
    kept = {name: value for name, value in os.environ.items() if name != "CC"}
    return {**kept, "PATH": str(folder), "ABQC_CACHE": str(folder / "cache")}


def abqc(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-P", "-m", "abqc.compiler.cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("target", "device"), [("cpu", ()), ("sm_90a", ("--device", "ptx-vm"))], ids=["cpu", "gpu"]
)
def test_compile_and_run(
    environment: dict[str, str], tmp_path: Path, target: str, device: tuple[str, ...]
) -> None:
    library, images, result = tmp_path / "m.so", tmp_path / "x.npy", tmp_path / "y.npz"
    np.save(images, np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64))
    abqc(environment, "compile", DIGITS, "-o", library, "--quant", "w8a8", "--target", target)
    abqc(environment, "run", library, "--input", f"X={images}", "--output", result, *device)
    with np.load(result) as outputs:
        assert all(np.isfinite(array).all() for array in outputs.values())


def test_doctor_finds_it(environment: dict[str, str]) -> None:
    assert "ziglang cc" in abqc(environment, "doctor")
