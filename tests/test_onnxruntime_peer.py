"""Quantized peers are kept in the user's cache folder, and not too many of them."""

from __future__ import annotations

from pathlib import Path

import onnx_models as models
import pytest
from abqc.compiler import onnxruntime_peer as peer
from abqc.errors import AbqcError

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.mlp(), tmp_path)


def test_made_once_in_the_cache_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the temporary directory, where another user could have put it."""
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path / "cache"))
    path = peer.quantized(model, "int8")
    assert path.is_relative_to(tmp_path / "cache" / "peers")
    made = path.stat().st_mtime_ns
    assert peer.quantized(model, "int8") == path
    assert path.stat().st_mtime_ns == made
    assert [p.name for p in (tmp_path / "cache" / "peers").iterdir()] == [path.parent.name]


def test_the_oldest_make_room(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path))
    for i in range(peer.KEPT + 5):
        (tmp_path / "peers" / str(i)).mkdir(parents=True)
    peer.quantized(model, "int8")
    assert len(list((tmp_path / "peers").iterdir())) == peer.KEPT


def test_cache_that_cannot_be_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_CACHE", "/proc/none")
    with pytest.raises(AbqcError, match=r"cannot keep a quantized model in /proc/none.*ABQC_CACHE"):
        peer.quantized(model, "int8")
