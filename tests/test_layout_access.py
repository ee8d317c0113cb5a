"""What follows from layouts: vector widths, bank conflicts, ldmatrix, copies; fragments of MMAs."""

from __future__ import annotations

import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80
from abqc.codegen.gpu.atoms import ATOMS, ELEMENT_BITS, mma_step
from abqc.codegen.gpu.weights import unit_fragment
from abqc.codegen.layout import (
    Layout,
    Swizzle,
    Swizzled,
    ThreadValue,
    copy_pieces,
    ldmatrix_rows,
    vector_width,
    wavefronts,
)
from abqc.codegen.layout.swizzle import row_swizzle
from hypothesis import given, settings
from hypothesis import strategies as st


def brute_force_width(registers: ThreadValue, memory) -> int:
    """The widest aligned, contiguous, in-order access, tried one by one."""
    width = 1
    while registers.values % (2 * width) == 0:
        width *= 2
        for thread in range(registers.threads):
            at = [memory(registers(thread, value)) for value in range(registers.values)]
            for begin in range(0, len(at), width):
                run = range(at[begin], at[begin] + width)
                if at[begin] % width or at[begin : begin + width] != list(run):
                    return width // 2
    return width


@settings(deadline=None)
@given(
    vector=st.sampled_from([1, 2, 4, 8]),
    rows=st.sampled_from([1, 2, 4]),
    pitch=st.sampled_from([16, 20, 32, 64]),
    swizzled=st.booleans(),
)
def test_vector_width(vector, rows, pitch, swizzled):
    """Threads along rows of 16 columns, `vector` neighbouring elements and `rows` rows each."""
    lanes = 16 // vector
    registers = ThreadValue(
        (16, 4 * rows), Layout(((lanes, 4), (vector, rows)), ((vector, 16), (1, 64)))
    )
    plain = Layout((16, 4 * rows), (1, pitch))
    memory = Swizzled(Swizzle(1, 2, 4), plain) if swizzled else plain
    width = vector_width(registers, memory)
    assert width <= brute_force_width(registers, memory)
    if not swizzled:
        assert width == brute_force_width(registers, memory)
    else:
        assert width == min(4, vector_width(registers, plain))


def test_values_down_a_column_are_single():
    registers = ThreadValue((4, 32), Layout((32, 4), (4, 1)))
    assert vector_width(registers, Layout((4, 32), (32, 1))) == 1


@pytest.mark.parametrize("form", ATOMS)
def test_fragments_cover_their_tile_once(form):
    atom = ATOMS[form]
    for fragment in (atom.a, atom.b, atom.c):
        offsets = fragment.layout.offsets()
        assert sorted(offsets) == list(range(len(offsets)))
        assert all(fragment.owner(*fragment(t, v)) == (t, v) for t in (0, 13, 31) for v in (0, 1))
    assert atom.a.values == atom.a_registers * atom.per_register
    assert atom.b.values == atom.b_registers * atom.per_register
    assert atom.c.values == atom.c_registers


@pytest.mark.parametrize("form", ATOMS)
def test_fragments_are_those_of_the_ptx_machine(form):
    """Two statements of the PTX ISA's figures."""
    tensor = pytest.importorskip("abqc.runtime.ptx.tensor")
    atom = ATOMS[form]
    shape, bits = f"m{atom.m}n{atom.n}k{atom.k}", ELEMENT_BITS[atom.family]
    for fragment, (first, second) in (
        (atom.a, tensor.a_layout(shape, bits)),
        (atom.b, tensor.b_layout(shape, bits)),
        (atom.c, tensor.c_layout(shape)),
    ):
        flat = first.reshape(32, -1), second.reshape(32, -1)
        assert flat[0].shape[1] == fragment.values
        for lane in range(32):
            for value in range(fragment.values):
                assert fragment(lane, value) == (flat[0][lane, value], flat[1][lane, value])


@pytest.mark.parametrize("row_bytes", [32, 64, 128, 256, 512])
def test_ldmatrix_loads_rows_without_conflicts(row_bytes):
    """A's fragment, byte by byte, from swizzled rows, at the addresses of StageReads."""
    swizzle, fragment = row_swizzle(row_bytes), ATOMS["s8.m16n8k32"].a
    for step in range(row_bytes // 32):

        def address(coordinate, step=step):
            row, byte = coordinate
            return swizzle(row * row_bytes + step * 32 + byte)

        matrices = ldmatrix_rows(fragment, address, 1)
        assert matrices is not None
        for lane in range(32):
            row, half = lane & 15, lane >> 4
            turned = (row * row_bytes & swizzle.source_mask) >> swizzle.shift
            column = (half << 4) ^ turned
            assert matrices[lane // 8][lane % 8] == row * row_bytes + (column ^ (32 * step))
        assert all(wavefronts(rows, 16) == 1 for rows in matrices)


def test_ldmatrix_transposed():
    """B's fragment of f16 from rows of K: the transposed form, and only it."""
    atom = ATOMS["f16.m16n8k16"]
    by_k = Layout((16, 8), (8, 1))  # 16 rows of K of 8 columns, 16 bytes each
    by_n = Layout((16, 8), (1, 16))
    assert ldmatrix_rows(atom.b, by_k, 2) is None
    assert ldmatrix_rows(atom.b, by_k, 2, transposed=True) == [
        [16 * row for row in range(8)],
        [16 * row for row in range(8, 16)],
    ]
    assert ldmatrix_rows(atom.b, by_n, 2) == [
        [32 * row for row in range(8)],
        [32 * row + 16 for row in range(8)],
    ]
    assert ldmatrix_rows(atom.b, Layout((16, 8), (1, 20)), 2) is None  # rows of 40 bytes


def test_wavefronts():
    assert wavefronts([4 * lane for lane in range(32)], 4) == 1
    assert wavefronts([0] * 32, 4) == 1  # one word for all
    assert wavefronts([128 * lane for lane in range(32)], 4) == 32
    assert wavefronts([8 * lane for lane in range(32)], 4) == 2
    assert wavefronts([16 * lane for lane in range(32)], 16) == 4
    assert wavefronts([256 * lane for lane in range(32)], 16) == 32


@given(rows=st.integers(1, 40), pieces=st.integers(1, 16), threads=st.sampled_from([32, 64, 128]))
def test_copies_take_every_piece_once(rows, pieces, threads):
    copies = copy_pieces(rows, pieces, threads)
    numbers = [copies.layout(t, v) for v in range(copies.values) for t in range(threads)]
    assert sorted(number for number in numbers if number < rows * pieces) == list(
        range(rows * pieces)
    )
    assert copies(0, 0) == (0, 0)


@pytest.mark.parametrize("lane_bits", [8, 16])
def test_units_are_fragments(lane_bits):
    fragment = unit_fragment(lane_bits)
    assert fragment.tile == (32, 8) and fragment.values == 8
    assert vector_width(fragment, Layout((32, 8), (1, 32))) == 32 // lane_bits


def test_steps_of_smaller_forms():
    """sm_75 makes a step of m16n8k32 of four m8n8k16, of m16n8k16 of two m16n8k8."""
    step = mma_step(SM_75, "s8")
    assert step is not None and step.instructions == 4
    step = mma_step(SM_75, "f16")
    assert step is not None and step.instructions == 2
    step = mma_step(SM_80, "s8")
    assert step is not None and step.instructions == 1
    assert mma_step(SM_75, "bf16") is None
    assert all(mma_step(arch, "s8") is not None for arch in ALL)
