"""Models in Python: what goes in, what comes out, what is refused."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import abqc
import handmade
import numpy as np
import pytest
from abqc.errors import AbqcError, ArtifactError, InputError
from handmade import COLUMNS, layer_inputs, layer_reference
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def model():
    with abqc.load(handmade.layer(), threads=2) as model:
        yield model


def check(outputs: list[np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    for got, expected in zip(outputs, layer_reference(inputs), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# ---- what works ----


def test_signature(model) -> None:
    assert [str(spec) for spec in model.inputs] == [
        "x: float32[rows, 16]",
        "index: int64[rows]",
        "past: float32[1, 2, past, 4]",
        "step: float32[1, 2, new, 4]",
    ]
    assert [spec.shape for spec in model.outputs] == [("rows", 16), ("rows",), (1, 2, None, 4), ()]
    assert model.manifest == {"model": "layer"}
    assert model.isa in ("avx2", "plain")


@pytest.mark.parametrize("threads", [None, 1, 2, 3, 7])
def test_dict_and_list(model, threads) -> None:
    inputs = layer_inputs(rows=100)
    check(model.run(inputs, threads=threads), inputs)
    check(model.run(list(inputs.values()), threads=threads), inputs)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 600), past=st.integers(0, 300), new=st.integers(0, 40))
def test_sizes(rows: int, past: int, new: int) -> None:
    inputs = layer_inputs(rows, past, new)
    with abqc.load(handmade.layer(), threads=2, verify=False) as model:
        check(model.run(inputs), inputs)


def test_plain_python_values(model) -> None:
    inputs = layer_inputs(rows=2)
    check(model.run({**inputs, "index": inputs["index"].tolist()}), inputs)


def test_strided_inputs_are_read_right(model) -> None:
    inputs = layer_inputs(rows=4)
    views = {
        "x": np.asfortranarray(inputs["x"]),
        "index": np.repeat(inputs["index"], 3)[::3],
        "past": np.flip(np.flip(inputs["past"], 2).copy(), 2),
        "step": np.broadcast_to(inputs["step"][:, :, :1], inputs["step"].shape),
    }
    assert not any(view.flags.c_contiguous for name, view in views.items() if name != "step")
    check(model.run(views), inputs)


def test_unaligned_input(model) -> None:
    inputs = layer_inputs(rows=4)
    memory = bytearray(inputs["x"].nbytes + 1)
    unaligned = np.frombuffer(memory, np.uint8)[1:].view(np.float32).reshape(4, COLUMNS)
    unaligned[:] = inputs["x"]
    assert not unaligned.flags.aligned
    check(model.run({**inputs, "x": unaligned}), inputs)


def test_strides_of_partial_elements(model) -> None:
    inputs = layer_inputs(rows=4)
    records = np.zeros((4, COLUMNS), np.dtype([("tag", np.int8), ("value", np.float32)]))
    records["value"] = inputs["x"]
    check(model.run({**inputs, "x": records["value"]}), inputs)


def test_read_only_input(model) -> None:
    inputs = layer_inputs()
    inputs["x"].flags.writeable = False
    check(model.run(inputs), inputs)


def test_outputs_given(model) -> None:
    inputs = layer_inputs()
    expected = layer_reference(inputs)
    y = np.empty((6, COLUMNS), np.float32)[::2]
    next_ = np.empty(3, np.int64)
    outputs = model.run(inputs, outputs={"y": y, "next": next_})
    assert outputs[0] is y and outputs[1] is next_
    check(outputs, inputs)
    total = np.empty((), np.float32)
    outputs = model.run(inputs, outputs=[None, None, None, total])
    assert outputs[3] is total
    np.testing.assert_allclose(total, expected[3], rtol=1e-4)


def test_outputs_outlive_model_and_file(tmp_path: Path) -> None:
    path = shutil.copy(handmade.layer(), tmp_path / "copy.so")
    inputs = layer_inputs(rows=1000)
    model = abqc.load(path)
    outputs = model.run(inputs)
    model.close()
    os.unlink(path)
    del model
    gc.collect()
    check(outputs, inputs)
    outputs[0][:] = 0  # and they are ours to write


def test_memory_is_given_back(model) -> None:
    """A thousand runs of 4 MB of outputs each must not grow the process by them."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    inputs = layer_inputs(rows=1 << 16)
    model.run(inputs)
    before = resident()
    for _ in range(200):
        model.run(inputs)
    assert resident() - before < 64 << 20


# ---- caches in place ----


def test_cache_grows_in_place(model) -> None:
    cache = np.full((1, 2, 40, 4), np.nan, np.float32)
    expected = np.zeros((1, 2, 0, 4), np.float32)
    for position in range(0, 40, 4):
        inputs = layer_inputs(past=position, new=4, seed=position)
        inputs["past"] = cache[:, :, :position]
        present = cache[:, :, : position + 4]
        outputs = model.run(inputs, outputs={"present": present})
        assert outputs[2] is present
        expected = np.concatenate([expected, inputs["step"]], axis=2)
        np.testing.assert_array_equal(present, expected)
        np.testing.assert_allclose(outputs[3], expected.sum(dtype=np.float64), rtol=1e-3, atol=1e-4)
        assert np.isnan(cache[:, :, position + 4 :]).all()


def test_cache_in_place_touches_only_the_new_part(model) -> None:
    cache = np.zeros((1, 2, 8, 4), np.float32)
    inputs = layer_inputs(past=5, new=1)
    inputs["past"] = cache[:, :, :5]
    inputs["past"][:] = np.array(7, np.float32)
    snapshot = cache.copy()
    model.run(inputs, outputs={"present": cache[:, :, :6]})
    changed = cache != snapshot
    assert changed[:, :, 5].all() and changed.sum() == 8


def test_cache_into_another_buffer(model) -> None:
    inputs = layer_inputs(past=5, new=2)
    other = np.zeros((1, 2, 50, 4), np.float32)
    outputs = model.run(inputs, outputs={"present": other[:, :, 10:17]})
    check(outputs, inputs)


def test_cache_that_overlaps_but_is_no_growth(model) -> None:
    memory = np.zeros(1000, np.float32)
    inputs = layer_inputs(past=5, new=1)
    inputs["past"] = memory[:40].reshape(1, 2, 5, 4)
    apart = np.zeros((1, 2, 6, 8), np.float32)[..., ::2]
    with pytest.raises(InputError, match="'present' must have the elements of its last dimension"):
        model.run(inputs, outputs={"present": apart[:, :, : inputs["past"].shape[2] + 1]})
    with pytest.raises(InputError, match="output 'present' overlaps input 'past', but is not that"):
        model.run(inputs, outputs={"present": memory[:48].reshape(1, 2, 6, 4)})


# ---- what is refused ----

WRONG = {
    "missing": (lambda i: i.pop("index"), "input 'index' is missing"),
    "unknown": (lambda i: i.update(z=1), "no input 'z'; its inputs are 'x', 'index'"),
    "float64": (
        lambda i: i.update(x=i["x"].astype(float)),
        "'x' is float64, expected float32",
    ),
    "int32": (lambda i: i.update(index=np.zeros(3, np.int32)), "'index' is int32, expected int64"),
    "big-endian": (lambda i: i.update(x=i["x"].astype(">f4")), "foreign byte order"),
    "text": (lambda i: i.update(x="text"), "'x' is str"),
    "objects": (lambda i: i.update(x=[None]), "'x' is object"),
    "ragged": (lambda i: i.update(x=[[1.0], [1.0, 2.0]]), "'x' is no array"),
    "rank": (lambda i: i.update(x=i["x"][0]), "'x' has rank 1, expected 2"),
    "size": (lambda i: i.update(x=i["x"][:, :5]), "axis 1 of input 'x' is 5, must be 16"),
    "symbol": (
        lambda i: i.update(index=np.zeros(4, np.int64)),
        "axis 0 of input 'index' is 4, must be 'rows' = 3 as in 'x'",
    ),
    "check in the model": (
        lambda i: i.update(x=i["x"][:0], index=i["index"][:0]),
        "there are no rows",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(model, case: str) -> None:
    change, message = WRONG[case]
    inputs = layer_inputs()
    change(inputs)
    with pytest.raises(InputError, match=message):
        model.run(inputs)


def test_wrong_number_of_inputs(model) -> None:
    with pytest.raises(InputError, match="1 inputs, expected 4; they are 'x', 'index'"):
        model.run([np.zeros(3)])


def read_only() -> np.ndarray:
    array = np.zeros((3, COLUMNS), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"z": None}, "no output 'z'"),
        ([None], "1 outputs, expected 4"),
        ({"y": [1.0]}, "'y' is no numpy array"),
        ({"y": np.zeros((3, COLUMNS))}, "'y' is float64, expected float32"),
        ({"y": read_only()}, "'y' is read-only"),
        (
            {"y": np.zeros((3, 5), np.float32)},
            "axis 1 of the buffer for output 'y' is 5, must be 16",
        ),
        (
            {"y": np.zeros((4, COLUMNS), np.float32)},
            r"'y' is \[4, 16\], but the output is \[3, 16\]",
        ),
        ({"next": np.zeros((1, 3), np.int64)}, "'next' has rank 2, expected 1"),
    ],
)
def test_wrong_outputs(model, outputs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.run(layer_inputs(), outputs=outputs)


def test_output_on_top_of_an_input(model) -> None:
    inputs = layer_inputs()
    with pytest.raises(InputError, match="output 'y' overlaps input 'x'"):
        model.run(inputs, outputs={"y": inputs["x"]})


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"threads": 5000}, {"device": "cuda"}])
def test_wrong_options(model, arguments) -> None:
    with pytest.raises(InputError):
        model.run(layer_inputs(), **arguments)


def test_closed_model() -> None:
    model = abqc.load(handmade.layer())
    model.close()
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.run(layer_inputs())


# ---- failures inside a run ----

FAILURES = {
    1: (InputError, "sizes 3 and 4 do not go together"),
    2: (InputError, "impossible size"),
    3: (InputError, "impossible size"),
    4: (AbqcError, "out of memory"),
    5: (AbqcError, "returned 7"),
    6: (AbqcError, "freed twice"),
    7: (AbqcError, "did not give output 'what_too'"),
    8: (AbqcError, "given twice"),
    9: (InputError, "after the output"),
}


@pytest.mark.parametrize("threads", [1, 2])
def test_failures_leave_the_model_usable(threads: int) -> None:
    with abqc.load(handmade.faults(), threads=threads) as model:
        for code, (error, message) in list(FAILURES.items()) * 3:
            with pytest.raises(error, match=message):
                model.run([np.array(code)])
            assert model.run([np.array(0)])[0] == 0


# ---- environment ----


def test_isa_is_chosen_and_forced(monkeypatch) -> None:
    assert abqc.load(handmade.layer(), isa="plain").isa == "plain"
    monkeypatch.setenv("ABQC_ISA", "plain")
    assert abqc.load(handmade.layer()).isa == "plain"
    monkeypatch.setenv("ABQC_ISA", "avx512")
    with pytest.raises(ArtifactError, match="no kernels for 'avx512'; it has: avx2 plain"):
        abqc.load(handmade.layer())
    monkeypatch.setenv("ABQC_ISA", "sse9")
    with pytest.raises(
        ArtifactError, match="unknown instruction set 'sse9', expected one of amxbf16, "
    ):
        abqc.load(handmade.layer())


@pytest.mark.parametrize("value", ["0", "-1", "two", "2x", "99999999999999999999"])
def test_bad_thread_numbers_in_the_environment(monkeypatch, value: str) -> None:
    monkeypatch.setenv("ABQC_NUM_THREADS", value)
    with pytest.raises(InputError, match="ABQC_NUM_THREADS"):
        abqc.load(handmade.layer())


def test_thread_number_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("ABQC_NUM_THREADS", "3")
    inputs = layer_inputs(rows=50)
    with abqc.load(handmade.layer()) as model:
        check(model.run(inputs), inputs)
