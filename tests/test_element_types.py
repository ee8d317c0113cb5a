"""Inputs and outputs of every element type: through the C interface, numpy, and the way back."""

from __future__ import annotations

import sys
from pathlib import Path

import abqc
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.errors import CompileError, InputError
from abqc.runtime import element_types
from abqc.runtime.element_types import NAMES, as_codes, by_dlpack, by_name, numpy_dtype, seen_as
from abqc.runtime.model import Model
from abqc.runtime.tensor_spec import TensorSpec

ml_dtypes = pytest.importorskip("ml_dtypes")

# Each output is the input of its number.
COPY_HOST = """
#include "shim.h"
int32_t abqc_host_main(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        const abqc_view *x = abqc_rt_input(ctx, i);
        abqc_rt_output(ctx, i, x->data, 1, x->sizes, x->strides);
    }
    return 0;
}
"""
SMALL = [name for name in NAMES if by_name(name).codes]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    meta = ArtifactMeta(
        inputs=[TensorSpec(name, name, ("n",)) for name in NAMES],
        outputs=[TensorSpec(f"{name}_too", name, ("n",)) for name in NAMES],
        isas=("plain",),
    )
    return handmade.build(tmp_path_factory.mktemp("types") / "copy.so", COPY_HOST, meta)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return abqc.load(path, threads=1)


def values(name: str) -> np.ndarray:
    numbers = np.array([0, 1, 1, 0] if name == "bool" else [0, 1, 1.5, -2])
    if name.startswith("uint") or name.endswith("e8m0fnu"):
        numbers = abs(numbers)
    return numbers.astype(numpy_dtype(name))


FEEDS = {name: values(name) for name in NAMES}


def test_every_type_comes_back(model: Model) -> None:
    for spec, name, y in zip(model.inputs, NAMES, model.run(FEEDS), strict=True):
        assert spec.dtype == name
        assert y.dtype == numpy_dtype(name) and y.dtype.name == name
        np.testing.assert_array_equal(y.astype(np.float32), FEEDS[name].astype(np.float32))


def test_codes_are_taken(model: Model) -> None:
    """Integers of the same size, and what `np.load` makes of a type that numpy lacks."""
    expected = model.run(FEEDS)
    for kind in ("u", "i", "V"):
        plain = {n: x.view(f"{kind}{x.itemsize}") if n in SMALL else x for n, x in FEEDS.items()}
        for y, known in zip(model.run(plain), expected, strict=True):
            assert y.dtype == known.dtype and y.tobytes() == known.tobytes()


def test_buffers_of_every_type(model: Model) -> None:
    buffers = [np.zeros(4, numpy_dtype(name)) for name in NAMES]
    for got, buffer, name in zip(model.run(FEEDS, outputs=buffers), buffers, NAMES, strict=True):
        assert got is buffer
        np.testing.assert_array_equal(buffer.view(f"u{buffer.itemsize}"),
                                      FEEDS[name].view(f"u{buffer.itemsize}"))  # fmt: skip


def test_other_types_are_refused(model: Model) -> None:
    for name, wrong in [
        ("bfloat16", np.float16),
        ("bfloat16", ml_dtypes.int4),
        ("int4", ml_dtypes.uint4),
        ("float8_e5m2", ml_dtypes.float8_e4m3fn),
        ("float16", np.uint16),
        ("int8", np.uint8),
    ]:
        with pytest.raises(
            InputError, match=rf"input '{name}' is {np.dtype(wrong).name}, expected"
        ):
            model.run(FEEDS | {name: np.zeros(4, wrong)})
    with pytest.raises(InputError, match="give its codes as uint16"):
        model.run(FEEDS | {"bfloat16": np.zeros(4, np.float32)})


def test_without_ml_dtypes_arrays_hold_codes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    numpy_dtype.cache_clear()
    try:
        codes = {name: x.view(by_name(name).storage) for name, x in FEEDS.items()}
        for name, y in zip(NAMES, abqc.load(path).run(codes), strict=True):
            assert y.dtype == by_name(name).storage
            np.testing.assert_array_equal(y, codes[name])
    finally:
        numpy_dtype.cache_clear()


@pytest.mark.parametrize("name", SMALL)
def test_codes_that_numpy_can_save(name: str, tmp_path: Path) -> None:
    x = values(name)
    codes = as_codes(x, name)
    np.save(tmp_path / "x.npy", codes)
    back = seen_as(np.load(tmp_path / "x.npy"), name)
    assert back is not None and back.dtype == x.dtype
    np.testing.assert_array_equal(back.astype(np.float32), x.astype(np.float32))
    if by_name(name).is_integer:
        np.testing.assert_array_equal(codes, x.astype(np.int32))  # the values themselves


def test_names_and_numbers_are_one_to_one() -> None:
    assert len({by_name(name).dlpack for name in NAMES}) == len(NAMES)
    for name in NAMES:
        assert by_dlpack(by_name(name).dlpack).name == name
    with pytest.raises(ValueError, match="complex64"):
        element_types.by_name("complex64")


def test_types_that_no_artifact_has_are_refused(tmp_path: Path) -> None:
    meta = ArtifactMeta(inputs=[TensorSpec("z", "complex64", (2,))], outputs=[], isas=("plain",))
    with pytest.raises(CompileError, match="'z' has type complex64"):
        handmade.build(tmp_path / "complex.so", COPY_HOST, meta)
