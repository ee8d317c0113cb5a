"""Outputs that the host function makes in their own memory, and those that it cannot make there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from abqc.errors import InputError
from abqc.runtime.abi import Library
from abqc.runtime.model import Model
from operator_graph import Graph, normal

ROWS, COLUMNS = 18, 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """x [n, COLUMNS] -> relu(x), its transpose, its rows as one axis, x itself."""
    graph = Graph(x=("float32", "n", COLUMNS))
    positive = graph("Relu", "x")
    turned = graph("Transpose", positive, perm=[1, 0])
    flat = graph("Reshape", graph("Exp", positive), np.array([-1]))
    graph.outputs = [positive, turned, flat, graph("Identity", "x")]
    return graph.compile(tmp_path_factory.mktemp("outputs"))[0]


def expected(x: np.ndarray) -> list[np.ndarray]:
    positive = np.maximum(x, 0)
    return [positive, positive.T, np.exp(positive).reshape(-1), x]


def check(outputs: list[np.ndarray], x: np.ndarray) -> None:
    for actual, wanted in zip(outputs, expected(x), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)


def buffer(count: int, shift: int = 0) -> np.ndarray:
    """f32 elements whose first one is `shift` bytes behind a multiple of 64."""
    memory = np.full(4 * count + 128, 255, np.uint8)
    begin = -memory.ctypes.data % 64 + shift
    return memory[begin : begin + 4 * count].view(np.float32)


@pytest.mark.parametrize("shift", [0, 4])
def test_buffers_are_filled_wherever_they_lie(model: Model, shift: int) -> None:
    x = normal(ROWS, COLUMNS)
    given = [buffer(a.size, shift).reshape(a.shape) for a in expected(x)]
    outputs = model.run([x], outputs=given)
    assert all(a is b for a, b in zip(outputs, given, strict=True))
    check(outputs, x)


def test_outputs_of_runs_are_not_each_others_memory(model: Model) -> None:
    feeds = [normal(rows, COLUMNS, seed=rows) for rows in (ROWS, 1, ROWS, 3)]
    kept = [model.run([x]) for x in feeds]
    for outputs, x in zip(kept, feeds, strict=True):
        check(outputs, x)


def test_a_buffer_for_two_outputs_spoils_no_other(model: Model) -> None:
    """The first output is what the second is made of."""
    x = normal(ROWS, COLUMNS)
    one = buffer(x.size)
    _, second, flat, same = model.run(
        [x], outputs=[one.reshape(ROWS, COLUMNS), one.reshape(COLUMNS, ROWS), None, None]
    )
    np.testing.assert_array_equal(second, np.maximum(x, 0).T)
    np.testing.assert_allclose(flat, expected(x)[2], rtol=1e-6)
    np.testing.assert_array_equal(same, x)


def test_a_buffer_of_another_shape_is_refused(model: Model) -> None:
    x = normal(ROWS, COLUMNS)
    with pytest.raises(InputError, match=r"is \[3, 40\], but the output is \[18, 40\]"):
        model.run([x], outputs=[buffer(3 * COLUMNS).reshape(3, COLUMNS), None, None, None])
    with pytest.raises(InputError, match="overlaps input"):
        memory = buffer(x.size).reshape(ROWS, COLUMNS)
        memory[:] = x
        model.run([memory], outputs=[memory, None, None, None])
    check(model.run([x]), x)


def test_other_layouts_than_in_the_run_before(model: Model) -> None:
    """What a run knows of its tensors is kept for the next one."""
    x = normal(2 * ROWS, COLUMNS)
    for array in (x, x[::2], x[:ROWS], x.copy().T.reshape(x.shape), x[:0], x):
        check(model.run([array]), array)
        check(model.run({model.inputs[0].name: array}), array)
    for wrong in (x[0], x.astype(np.float64), x[:, 1:]):
        with pytest.raises(InputError):
            model.run([wrong])
        check(model.run([x]), x)


def test_sizes_that_a_run_decides(tmp_path: Path) -> None:
    """Inputs of the same layout, outputs of other sizes; and one without a name for its size."""
    graph = Graph(x=("float32", None))
    graph.outputs = [graph("NonZero", "x"), graph("Neg", "x")]
    model, _ = graph.compile(tmp_path)
    assert Library(model.path).sized_outputs() == [False, True]
    for count in (3, 5, 5, 0, 7):
        x = np.zeros(9, np.float32)
        x[:count] = 1
        places, negative = model.run([x])
        assert places.tolist() == [list(range(count))]
        np.testing.assert_array_equal(negative, -x)


def test_a_refused_run_does_not_mix_up_the_next(tmp_path: Path) -> None:
    """One input is as before, of the other only the refused run knew the layout."""
    graph = Graph(x=("float32", "n", 2), y=("float32", 1, 2))
    graph("Add", "x", "y")
    model, _ = graph.compile(tmp_path)
    x, y = normal(3, 2), normal(1, 2)
    model.run([x, y])
    longer = normal(5, 2)
    with pytest.raises(InputError):
        model.run([longer, y[0]])
    np.testing.assert_array_equal(model.run([longer, y])[0], longer + y)
    np.testing.assert_array_equal(model.run([longer, y])[0], longer + y)
