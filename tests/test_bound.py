"""Models whose tensors stay from run to run: `Model.bind`."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.errors import InputError
from abqc.runtime import dlpack
from abqc.runtime.dlpack import DType, FirstRows, RowsLayout, TensorTable
from abqc.runtime.model import Model
from operator_graph import Graph, normal

COLUMNS = 5
FLOAT = DType(2, 32, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """x [n, COLUMNS], y [m, COLUMNS] -> both behind each other, x + sum of y."""
    graph = Graph(x=("float32", "n", COLUMNS), y=("float32", "m", COLUMNS))
    total = graph("ReduceSum", "y", np.array([0]), keepdims=1)
    graph.outputs = [graph("Concat", "x", "y", axis=0), graph("Add", "x", total)]
    return graph.compile(tmp_path_factory.mktemp("bound"))[0]


def test_bound_tensors_are_read_and_filled_in_every_run(model: Model) -> None:
    both, added = (spec.name for spec in model.outputs)
    buffer = normal(9, COLUMNS)
    layout = RowsLayout(buffer, 0)
    x, y = FirstRows(buffer, layout, FLOAT), normal(2, COLUMNS)
    result = np.empty((11, COLUMNS), np.float32)
    filled = RowsLayout(result, 0)
    bound = model.bind({"x": x}, {both: FirstRows(result, filled, FLOAT)})
    for rows in (3, 9, 1):
        layout.rows, filled.rows = rows, rows + 2
        buffer += 1
        out = bound.run({"y": y})
        assert out.keys() == {added}
        np.testing.assert_array_equal(result[: rows + 2], np.concatenate([buffer[:rows], y]))
        np.testing.assert_allclose(out[added], buffer[:rows] + y.sum(0), rtol=1e-5)


def test_small_outputs_get_the_size_of_their_run(model: Model) -> None:
    bound = model.bind({"x": normal(2, COLUMNS)}, {})
    sizes = [[len(out) for out in bound.run({"y": normal(n, COLUMNS)}).values()] for n in (1, 1, 4)]
    assert sizes == [[3, 2], [3, 2], [6, 2]]


def test_an_entry_that_was_left_half_written_is_written_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, x = TensorTable([FLOAT]), normal(2, 3)
    table.describe(0, x)
    assert table.point(0, x)
    with monkeypatch.context() as patch:
        patch.setattr(dlpack, "data_address", lambda array: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            table.describe(0, normal(4, 5))
    assert not table.point(0, x)


def test_memory_of_large_outputs_is_used_again(model: Model) -> None:
    """Once it was released, and not before."""
    x, y = np.zeros((450_000, COLUMNS), np.float32), normal(2, COLUMNS)

    def run(first: float) -> list[np.ndarray]:
        x[0, 0] = first
        return model.run({"x": x, "y": y})

    one, two = run(1), run(2)
    assert (one[0][0, 0], two[0][0, 0]) == (1, 2)
    places = {array.ctypes.data for array in (*one, *two)}
    del one, two
    assert all(array.ctypes.data in places for array in run(3))
    small = model.run({"x": x[:3], "y": y})[0]
    np.testing.assert_array_equal(small, np.concatenate([x[:3], y]))


def test_what_does_not_fit_is_named(model: Model) -> None:
    x, y, both = normal(2, COLUMNS), normal(3, COLUMNS), model.outputs[0].name
    apart = np.zeros((2, COLUMNS), [("x", np.float32), ("flag", np.int8)])["x"]
    for inputs, outputs, name in (
        ({"z": x}, {}, "no input 'z'"),
        ({"x": x}, {"z": x}, "no output 'z'"),
        ({"x": x.astype(np.float64)}, {}, "input 'x' is float64"),
        ({"x": x}, {both: x[0]}, f"output '{both}' has rank 1"),
        ({"x": apart}, {}, "input 'x' has strides of partial elements"),
    ):
        with pytest.raises(InputError, match=name):
            model.bind(inputs, outputs)
    bound = model.bind({"x": x}, {both: np.empty((4, COLUMNS), np.float32)})
    for given, name in (
        ({}, "bound already: y"),
        ({"x": x, "y": y}, "bound already: x"),
        ({"y": y}, f"output '{both}' is .4, 5., but the output is .5, 5."),
    ):
        with pytest.raises(InputError, match=name):
            bound.run(given)
