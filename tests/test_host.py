"""The host function at run time: checks, memory, outputs; and its object."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.host.compile import compile_host
from abqc.codegen.host.entry import ENTRY
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.errors import CompileError, InputError
from abqc.runtime.model import Model
from operator_graph import Feeds, Graph, normal

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def hazards(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose inputs can be wrong in many ways that only a run can find."""
    g = Graph(
        x=("float32", "n", 6),
        y=("float32", "m", 6),
        image=("float32", 1, 3, "h", 8),
        at=("int64", "k"),
        limit=("int64",),
        shape=("int64", 2),
        divisor=("int64", 1),
        z=("float32", "l", 6),
    )
    g("Add", "x", "z")
    g("Concat", g("Relu", "x"), "y", "x", axis=1)
    g("Reshape", "x", np.array([2, -1, 4]))
    g("Reshape", "x", "shape")
    g("Conv", "image", normal(2, 3, 3, 3), strides=[2, 2])
    g("Gather", "x", "at", axis=0)
    g("GatherElements", "x", np.array([[-1], [5]]), axis=1)
    g("Gather", normal(50, 8), "at")
    g("Range", np.array(0), "limit", np.array(1))
    g("Div", np.array([7, -(2**63)]), "divisor")
    g("Mod", np.array([7, -(2**63)]), "divisor")
    model, _ = g.compile(tmp_path_factory.mktemp("hazards"))
    return model


def feeds(**changed: np.ndarray) -> Feeds:
    usual = {
        "x": normal(4, 6),
        "y": normal(4, 6, seed=1),
        "image": normal(1, 3, 5, 8),
        "at": np.array([0, -1]),
        "limit": np.array(3),
        "shape": np.array([3, 8]),
        "divisor": np.array([2]),
    }
    changed.setdefault("z", changed.get("x", usual["x"]))
    return usual | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z": normal(3, 6)}, "node 'Add_0': sizes n and l cannot be broadcast together"),
        ({"y": normal(3, 6)}, "node 'Concat_2': sizes along axis 0 differ"),
        ({"x": normal(5, 6), "y": normal(5, 6)}, "node 'Reshape_3': float32[n, 6] cannot be"),
        ({"shape": np.array([5, 5])}, "node 'Reshape_4': float32[n, 6] cannot be reshaped"),
        ({"shape": np.array([10**6, 10**6])}, "node 'Reshape_4': float32[n, 6] cannot be reshaped"),
        ({"image": normal(1, 3, 2, 8)}, "node 'Conv_5': the input is smaller than the window"),
        ({"limit": np.array(2**62)}, "node 'Range_9': a tensor would be larger than any memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checks_become_errors_and_the_next_run_works(
    hazards: Model, changed: Feeds, message: str
) -> None:
    expected = hazards.run(feeds())
    with pytest.raises(InputError) as caught:
        hazards.run(feeds(**changed))
    assert message in str(caught.value)
    for a, b in zip(hazards.run(feeds()), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("place", [4, -5, 10**12, -(10**12), 2**63 - 1, -(2**63)])
def test_an_index_out_of_range_is_an_error_of_the_node(hazards: Model, place: int) -> None:
    with pytest.raises(InputError, match=r"node 'Gather_[68]': an index is out of range"):
        hazards.run(feeds(at=np.array([1, place, 0])))
    results = hazards.run(feeds(at=np.array([3, -4, 0])))
    by_name = {spec.name: r for spec, r in zip(hazards.outputs, results, strict=True)}
    np.testing.assert_array_equal(by_name["Gather_6"], feeds()["x"][[3, -4, 0]])


def test_gathers_from_an_empty_tensor_are_errors(hazards: Model) -> None:
    with pytest.raises(InputError, match="node 'Gather_6': an index is out of range"):
        hazards.run(feeds(x=normal(0, 6), y=normal(0, 6), shape=np.array([0, 8])))


def test_divisions_never_trap(hazards: Model) -> None:
    for divisor, quotients in (([0], [0, 0]), ([-1], [-7, -(2**63)]), ([2], [3, -(2**62)])):
        results = hazards.run(feeds(divisor=np.array(divisor)))
        np.testing.assert_array_equal(results[-2], quotients)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow(hazards: Model) -> None:
    """Neither by runs of changing sizes nor by runs that end in an error."""

    def work(count: int) -> None:
        for i in range(count):
            n = 4 * (1 + i % 7)
            hazards.run(feeds(x=normal(n, 6), y=normal(n, 6), shape=np.array([-1, 3])))
            with pytest.raises(InputError):
                hazards.run(feeds(limit=np.array(2**62)))

    work(30)
    before = resident_bytes()
    work(300)
    assert resident_bytes() - before < 4 << 20


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Model:
    g = Graph(x=("float32", "n", 4))
    relu = g("Relu", "x")
    g.outputs = [relu, g("Identity", relu), g("Identity", "x"), g("Reshape", relu, np.array([-1]))]
    g.outputs += [g("Transpose", "x", perm=[1, 0]), g("ReduceSum", relu, np.array([0, 1]))]
    model, _ = g.compile(tmp_path_factory.mktemp("views"))
    return model


def test_outputs_handed_in_are_filled(views: Model) -> None:
    x = normal(3, 4)
    expected = views.run([x])
    given = [np.full_like(a, 7) for a in expected]
    results = views.run([x], outputs=given)
    for buffer, result, value in zip(given, results, expected, strict=True):
        assert result is buffer
        np.testing.assert_array_equal(buffer, value)


def test_outputs_may_have_strides(views: Model) -> None:
    x = normal(3, 4)
    wide = np.full((3, 9), 7, np.float32)
    transposed = np.full((3, 4), 7, np.float32).T
    result, *_ = views.run([x], outputs={"Relu_0": wide[:, 2:6], "Transpose_4": transposed})
    np.testing.assert_array_equal(result, np.maximum(x, 0))
    np.testing.assert_array_equal(wide[:, 2:6], np.maximum(x, 0))
    assert (wide[:, :2] == 7).all() and (wide[:, 6:] == 7).all()
    np.testing.assert_array_equal(transposed, x.T)


def test_outputs_outlive_the_next_run(views: Model) -> None:
    x = normal(3, 4)
    first = views.run([x])
    kept = [a.copy() for a in first]
    views.run([normal(3, 4, seed=5)])
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    first[0][:] = 9  # outputs of one value are copies of it
    np.testing.assert_array_equal(first[1], kept[1])
    np.testing.assert_array_equal(x, kept[2])


def test_outputs_of_a_wrong_size_are_refused(views: Model) -> None:
    with pytest.raises(InputError, match="Relu_0"):
        views.run([normal(3, 4)], outputs={"Relu_0": np.zeros((2, 4), np.float32)})


HOST = """func.func private @kernel(index, memref<?xf32>, memref<?xf32>) attributes {abq.kernel}
func.func @main(%x: memref<?xf32>) -> memref<?xf32> {
  %c0 = arith.constant 0 : index
  %n = memref.dim %x, %c0 : memref<?xf32>
  %ok = arith.cmpi ne, %n, %c0 : index
  cf.assert %ok, "nothing to do"
  %y = memref.alloc(%n) : memref<?xf32>
  func.call @kernel(%n, %x, %y) : (index, memref<?xf32>, memref<?xf32>) -> ()
  return %y : memref<?xf32>
}"""


def test_the_object_defines_one_function_and_needs_the_shim_only(tmp_path: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is missing")
    with make_context():
        module = ir.Module.parse(HOST)
    (tmp_path / "host.o").write_bytes(compile_host(module, ["kernel"]))
    listing = subprocess.run([nm, tmp_path / "host.o"], capture_output=True, text=True, check=True)
    symbols = [line.split()[-2:] for line in listing.stdout.splitlines()]
    assert [name for kind, name in symbols if kind == "T"] == [ENTRY]
    needed = {name for kind, name in symbols if kind == "U"} - {"_GLOBAL_OFFSET_TABLE_"}
    assert needed and all(name.startswith("abqc_rt_") for name in needed)


def test_tensors_of_rank_9_are_refused() -> None:
    type_ = f"memref<{'?x' * 9}f32>"
    with make_context():
        module = ir.Module.parse(f"func.func @main(%x: {type_}) {{ return }}")
    with pytest.raises(CompileError, match="at most 8 axes"):
        compile_host(module, [])
