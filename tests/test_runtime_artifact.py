"""Files: what is opened and what is refused, before and without executing anything of it."""

from __future__ import annotations

import gc
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import abqc
import handmade
import numpy as np
import pytest
from abqc.errors import ArtifactError
from abqc.runtime import abi
from abqc.runtime.artifact import FOOTER_SIZE, append_trailer, manifest_of
from handmade import layer_inputs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(handmade.layer(), tmp_path / "model.so"))


def change(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(content)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        abqc.load(path)


def test_manifest_without_opening(path: Path) -> None:
    assert manifest_of(path) == {"model": "layer"}
    assert manifest_of(str(path), verify=False) == {"model": "layer"}


def test_missing_and_foreign(tmp_path: Path) -> None:
    refused(tmp_path / "absent.so", "cannot open '.*absent.so': No such file")
    refused(tmp_path, "cannot open '.*': is a directory")
    (tmp_path / "empty.so").touch()
    refused(tmp_path / "empty.so", "not a model compiled by abqc")
    (tmp_path / "text.so").write_text("not a library at all " * 100)
    refused(tmp_path / "text.so", "not a model compiled by abqc")
    refused(Path(np._core._multiarray_umath.__file__), "without abqc's trailer")


def test_trailer_on_something_else(tmp_path: Path) -> None:
    """A whole artifact by its trailer, but no library."""
    path = tmp_path / "fake.so"
    path.write_bytes(b"\x7fELF" + bytes(1000))
    append_trailer(path, {})
    refused(path, "cannot load '.*fake.so'")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.9, 0.999])
def test_truncated(path: Path, part: float) -> None:
    size = path.stat().st_size
    os.truncate(path, min(int(size * part), size - 1))
    refused(path, "truncated|not a model")


def test_extended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")
    refused(path, "without abqc's trailer")


def test_altered_anywhere(path: Path) -> None:
    original = path.read_bytes()
    random = np.random.default_rng(0)
    for at in [4, *random.integers(4, len(original) - FOOTER_SIZE, 100)]:
        altered = bytearray(original)
        altered[at] ^= 1 << random.integers(8)
        path.write_bytes(altered)
        refused(path, "was altered")


def test_altered_trailer(path: Path) -> None:
    original = path.read_bytes()
    for bit in range(8 * FOOTER_SIZE):
        altered = bytearray(original)
        altered[len(original) - FOOTER_SIZE + bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        refused(path, "altered|damaged|trailer|artifact format")


def test_other_version(path: Path) -> None:
    change(path, -12, struct.pack("<I", 99))
    refused(path, "artifact format 99, this abqc reads 1; compile the model again")


def test_same_file_twice(path: Path) -> None:
    first, second = abqc.load(path), abqc.load(path)
    inputs = layer_inputs()
    first.close()
    gc.collect()
    np.testing.assert_array_equal(second.run(inputs)[1], inputs["index"] + 1)


def test_replaced_while_loaded(path: Path, tmp_path: Path) -> None:
    """The loader keys libraries by name; a new file under an old name must be a new model."""
    old = abqc.load(path)
    shutil.copy(handmade.faults(), tmp_path / "new.so")
    os.replace(tmp_path / "new.so", path)
    new = abqc.load(path)
    assert [spec.name for spec in new.inputs] == ["what"]
    assert len(old.run(layer_inputs())) == 4
    assert new.run([np.array(0)])[0] == 0


def test_many_models_open_and_closed(path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(handmade.faults(), tmp_path / "other.so"))
    random = np.random.default_rng(0)
    models: list[tuple[abqc.Model, int]] = []
    for _ in range(60):
        if models and random.random() < 0.5:
            models.pop(random.integers(len(models)))
        first = random.random() < 0.5
        models.append((abqc.load(path if first else other), 4 if first else 1))
        for model, count in models:
            assert len(model.inputs) == count


def test_garbage_is_collected_while_models_are_counted(path: Path) -> None:
    """Outputs that refer to themselves go whenever Python likes."""
    outputs = abqc.load(path).run(layer_inputs())
    outputs.append(outputs)
    del outputs

    def collect() -> None:
        with abi._mapped_lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_written_over_while_loaded(path: Path) -> None:
    model = abqc.load(path)
    elf = path.read_bytes()
    change(path, len(elf) - FOOTER_SIZE - 3, b"!")
    altered = path.read_bytes()[: -FOOTER_SIZE - len('{"model":"layer"}')]
    with open(path, "r+b") as file:  # same inode, another manifest
        file.truncate(len(altered))
    append_trailer(path, {"model": "other"})
    refused(path, "was written over while an older model of it is loaded")
    del model
    gc.collect()
    assert abqc.load(path).manifest == {"model": "other"}


def test_a_process_that_ends_with_models_open(path: Path) -> None:
    code = f"""
import abqc, numpy as np
model = abqc.load({str(path)!r}, threads=2)
i = dict(x=np.zeros((64, 16), np.float32), index=np.zeros(64, np.int64),
         past=np.zeros((1, 2, 3, 4), np.float32), step=np.zeros((1, 2, 1, 4), np.float32))
outputs = model.run(i)
second = abqc.load({str(path)!r}, threads=2).run(i)
print("ran")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\n", "")


def test_load_needs_numpy_alone(path: Path) -> None:
    code = f"""
import sys
for name in ("onnx", "torch_mlir", "llvmlite", "lark", "ml_dtypes"):
    sys.modules[name] = None
import abqc
abqc.load({str(path)!r}).close()
print(sorted(name for name in sys.modules if name.startswith("abqc.")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "abqc.runtime.model" in result.stdout, result.stderr
    assert "codegen" not in result.stdout and "dialects" not in result.stdout
