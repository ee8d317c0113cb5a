"""The weight store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from abqc.dialects.formats import parse_scheme, quantize_weight
from abqc.dialects.weight_store import WeightStore
from abqc.errors import ModelError


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (2, 3, 4)])
def test_arrays_come_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype)
    with WeightStore(tmp_path) as store:
        store.add("before", np.ones(3, np.uint8))  # so that an offset is not 0
        store.add("weight", array)
        np.testing.assert_array_equal(store.get("weight"), array)
        assert store.get("weight").dtype == store.dtype("weight") == array.dtype
        assert store.shape("weight") == shape
        assert store.quantized("weight") is None
        assert "weight" in store and "other" not in store
        assert list(store) == ["before", "weight"] and len(store) == 2


def test_transposed_arrays_are_stored_as_seen(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4).T
    with WeightStore(tmp_path) as store:
        store.add("w", array)
        np.testing.assert_array_equal(store.get("w"), array)


def test_arrays_are_read_only(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        store.add("file", np.ones(3))
        store.add("empty", np.ones((0, 3)))
        store.add_lazy("lazy", (3,), "float64", lambda: np.ones(3))
        for symbol in store:
            with pytest.raises(ValueError, match="read-only"):
                store.get(symbol)[...] = 2


def test_lazy_arrays_are_made_each_time(tmp_path: Path) -> None:
    calls = []

    def make() -> np.ndarray:
        calls.append(1)
        return np.eye(2, dtype=np.float32)

    with WeightStore(tmp_path) as store:
        store.add_lazy("w", (2, 2), np.float32, make)
        assert store.shape("w") == (2, 2) and store.dtype("w") == np.float32 and not calls
        store.get("w")
        store.get("w")
        assert len(calls) == 2
        store.add_lazy("wrong", (3,), np.float32, lambda: np.zeros(4, np.float32))
        with pytest.raises(ValueError, match=r"'wrong' was announced as float32 \(3,\)"):
            store.get("wrong")


def test_mapped_arrays_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    array = np.arange(6, dtype=np.int32)
    path.write_bytes(b"xyz" + array.tobytes())
    with WeightStore(tmp_path / "store") as store:
        store.add_mapped("w", path, 3, np.int32, (2, 3))
        np.testing.assert_array_equal(store.get("w"), array.reshape(2, 3))
        with pytest.raises(ModelError, match=r"truncated.*27 bytes, 31 are needed"):
            store.add_mapped("long", path, 3, np.int32, (7,))
        with pytest.raises(ModelError, match="missing"):
            store.add_mapped("none", tmp_path / "no.bin", 0, np.int32, (1,))
        assert list(store) == ["w"]
    assert path.exists()


def test_quantized_weights_are_kept_exactly(tmp_path: Path) -> None:
    w = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(np.float32)
    for text in ("w4:g4:asym", "w8:channel"):
        q = quantize_weight(w, parse_scheme(text))
        with WeightStore(tmp_path) as store:
            store.add_quantized("w", q.codes, q.scale.astype("f"), q.zero, q.scheme, shape=w.shape)
            back = store.quantized("w")
            assert back is not None and back.scheme == q.scheme
            np.testing.assert_array_equal(back.codes, q.codes)
            assert back.scale.dtype == np.float32
            np.testing.assert_array_equal(back.scale, q.scale)
            np.testing.assert_array_equal(store.get("w"), q.dequantize().reshape(w.shape))
            assert store.shape("w") == w.shape and store.dtype("w") == np.float32
            with pytest.raises(ValueError, match="do not fill"):
                store.add_quantized("v", q.codes, q.scale, q.zero, q.scheme, shape=(5, 5))


def test_closing_removes_what_was_made(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "keep").write_text("")
    with WeightStore(theirs) as first, WeightStore(theirs) as second:
        first.add("w", np.zeros(4))
        second.add("w", np.ones(4))
        kept = first.get("w")
    assert [path.name for path in theirs.iterdir()] == ["keep"]
    np.testing.assert_array_equal(kept, 0)  # a map outlives the file's name
    for directory in (None, tmp_path / "new" / "deep"):
        store = WeightStore(directory)
        store.add("w", np.zeros(4))
        assert store.directory.exists()
        store.close()
        store.close()
        assert not store.directory.exists()


def test_symbols_are_unique_and_known(tmp_path: Path) -> None:
    with WeightStore(tmp_path) as store:
        store.add("w", np.zeros(4))
        with pytest.raises(ValueError, match="already"):
            store.add("w", np.zeros(4))
        with pytest.raises(KeyError, match="no weight 'v'"):
            store.get("v")


def test_a_store_beside_another_writes_elsewhere(tmp_path: Path) -> None:
    with WeightStore(tmp_path / "one") as store:
        store.add("w", np.arange(1000, dtype=np.float32))
        with store.beside(tmp_path / "two") as other:
            np.testing.assert_array_equal(other.get("w"), store.get("w"))
            store.add("mine", np.full(5000, 1, np.float32))
            other.add("theirs", np.full(7000, 2, np.float32))
            assert "theirs" not in store and "mine" not in other
            assert (store.get("mine") == 1).all() and (other.get("theirs") == 2).all()
        assert (store.get("w") == np.arange(1000)).all()


def test_forks_of_a_process_write_to_stores_of_their_own(tmp_path: Path) -> None:
    """Both would append to one file at the same place."""
    with WeightStore(tmp_path / "weights") as store:
        pid = os.fork()
        if pid == 0:
            try:
                other = store.beside(tmp_path / "theirs")
                for number in range(200):
                    other.add(f"w{number}", np.full(10_000, np.nan, np.float32))
            finally:
                os._exit(0)
        for number in range(200):
            store.add(f"w{number}", np.full(10_000, number, np.float32))
        os.waitpid(pid, 0)
        assert all((store.get(f"w{number}") == number).all() for number in range(200))
