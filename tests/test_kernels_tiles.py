"""Products on tile registers, and on what stands for them in memory, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.cpu.int8.schedules import ROWS
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.int8.tiles import CHUNK, FEW_ROWS, Depth
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ACTIVATIONS, TILED_ISAS, WEIGHTS, Case, compile_jit, variant_for

INT8 = Int8Strategy()
each_isa = pytest.mark.parametrize("isa", TILED_ISAS, ids=lambda isa: isa.name)


@each_isa
@pytest.mark.parametrize(
    ("weight", "activation", "m", "n", "k"),
    [
        ("w8:channel", "a8", 37, 40, 256),  # multiplied where they are
        ("w8:channel:asym", "a8", 50, 20, 33),
        ("w4:g32", "a8", 9, 33, 100),
        ("w3:g33", "a5", 8, 17, 100),
        ("wt5:g80", "a8", 17, 30, 200),
        ("w7:tensor", "a8", 70, 64, 300),
        ("w6:channel", "a8", ROWS + 5 + FEW_ROWS, 64, 700),
        ("w4:g128:asym", "a8", ROWS + FEW_ROWS, 50, CHUNK + 300),
        ("w8:channel", "a8", 37, 40, 2 * CHUNK + 900),
        ("wt5:channel", "a8", 33, 20, CHUNK + 41),
        ("wmxint8", "a8", 40, 20, 96),
        ("wnvfp4", "a8", 40, 20, 100),
    ],
)
def test_exact(isa: Isa, weight: str, activation: str, m: int, n: int, k: int) -> None:
    case = Case.random(INT8, isa, weight, activation, m, n, k)
    case.check_accumulators()
    case.check_result()


@settings(max_examples=6, deadline=None)
@given(
    isa=st.sampled_from(TILED_ISAS),
    weight=st.sampled_from(WEIGHTS),
    group=st.sampled_from(["tensor", "channel", "g32", "g48", "g33", "g100", "g7"]),
    activation=st.sampled_from(ACTIVATIONS),
    m=st.integers(FEW_ROWS, 60),
    n=st.integers(1, 70),
    k=st.integers(1, 150),
    seed=st.integers(0, 2**16),
)
def test_ragged_shapes(isa, weight, group, activation, m, n, k, seed):  # type: ignore[no-untyped-def]
    name, _, symmetry = weight.partition(":")
    scheme = f"{name}:{group}" + (f":{symmetry}" if symmetry else "")
    case = Case.random(INT8, isa, scheme, activation, m, n, k, seed)
    case.check_accumulators()
    case.check_result()


@each_isa
def test_extreme_codes_do_not_saturate(isa: Isa) -> None:
    for sign in (1, -1):
        case = Case.random(INT8, isa, "w8:channel", "a8", 16, 16, 1024)
        format = case.weight.scheme.format
        case.weight.codes[:] = format.qmax if sign > 0 else format.qmin
        case.x[:] = 1.0
        case.check_accumulators()


@each_isa
@pytest.mark.parametrize("weight", ["w8:channel", "w4:g48", "w3:g20"])
def test_nothing_is_read_behind_the_rows(isa: Isa, weight: str) -> None:
    """The last row ends where a page ends that may not be read."""
    mmap = pytest.importorskip("mmap")
    m, n, k = 16, 20, 148
    case = Case.random(INT8, isa, weight, "a8", m, n, k)
    spec = case.spec
    pack, matmul = INT8.pack_kernel(spec), variant_for(INT8.matmul_kernels(spec), m)
    jit = compile_jit(isa, [pack, matmul])
    size = m * INT8.row_bytes(spec)
    pages = -(-size // mmap.PAGESIZE)
    with mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE) as memory:
        whole = np.frombuffer(memory, np.uint8)
        _forbid(whole, pages * mmap.PAGESIZE)
        q = whole[pages * mmap.PAGESIZE - size : pages * mmap.PAGESIZE]
        jit.run(pack.name, pack.grid(m), [case.x.reshape(-1), q, m])
        y = np.zeros(m * n, np.float32)
        blob = INT8.pack_weight(spec, case.weight)
        jit.run(matmul.name, matmul.grid(m, n), [q, blob, case.bias, y, m, n])
        del q, whole
    np.testing.assert_array_equal(y.reshape(m, n), case.run(accumulators=False))


def _forbid(memory: np.ndarray, begin: int) -> None:
    """Take all rights from the bytes of `memory` from `begin` on."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(memory.ctypes.data + begin, memory.nbytes - begin, 0) == 0


def test_depths() -> None:
    for k, group, expected in [(576, "channel", 64), (96, "g96", 48), (100, "g32", 32)]:
        spec = MatmulSpec(16, k, parse_scheme(f"w4:{group}"), parse_scheme("a8"))
        layout = INT8.weight_layout(spec)
        assert Depth.of(layout.reduction, INT8.row_layout(spec)).depth == expected
