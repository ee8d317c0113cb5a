"""Layouts, swizzles and copies; fragments of MMAs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80
from abqc.codegen.gpu.atoms import ATOMS, ELEMENT_BITS, mma_step
from abqc.codegen.gpu.layout import Layout, LayoutError, Swizzle, ThreadValue, copy_pieces
from abqc.codegen.gpu.layout.swizzle import row_swizzle
from abqc.codegen.gpu.weights.layout import unit_fragment
from hypothesis import given, settings
from hypothesis import strategies as st

WARP = 32
BANKS = 32
BANK_BYTES = 4
MATRIX_ROWS = 8  # of one ldmatrix matrix, 16 bytes each


def vector_width(registers: ThreadValue, memory: Callable[..., int]) -> int:
    """The widest aligned, contiguous access in the order of a thread's values."""
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


def wavefronts(addresses: Sequence[int]) -> int:
    """How many passes over shared memory one warp's access takes: 16 bytes at each address.

    It goes in quarters of a warp; in one, a bank serves one 4-byte word a pass, to any number of
    lanes.
    """
    lanes, passes = WARP // 4, 0
    for begin in range(0, len(addresses), lanes):
        words: dict[int, set[int]] = {}
        for address in addresses[begin : begin + lanes]:
            for word in range(address // BANK_BYTES, address // BANK_BYTES + 4):
                words.setdefault(word % BANKS, set()).add(word)
        passes += max(len(distinct) for distinct in words.values())
    return passes


def ldmatrix_rows(fragment: ThreadValue, memory: Callable[..., int]) -> list[list[int]] | None:
    """The addresses with which `ldmatrix` loads a fragment of bytes; None if it cannot.

    One list of 8 rows for each matrix, that is for each 4-byte register of a thread. PTX ISA,
    "ldmatrix": thread t gets bytes 4 (t % 4) .. + 3 of row t / 4.
    """
    matrices = []
    for register in range(fragment.values // 4):
        rows: list[int | None] = [None] * MATRIX_ROWS
        for thread in range(WARP):
            for i in range(4):
                row, byte = thread // 4, thread % 4 * 4 + i
                at = memory(fragment(thread, register * 4 + i)) - byte
                if at % 16 or rows[row] not in (None, at):
                    return None
                rows[row] = at
        matrices.append([row for row in rows if row is not None])
    return matrices


def test_numbers_unfold_leftmost_first():
    layout = Layout((4, (2, 3)), (2, (1, 8)))
    assert layout(3, (1, 2)) == 3 * 2 + 1 + 16
    assert layout(3, 5) == layout(3, (1, 2))
    assert layout(3 + 4 * 5) == layout(3, 5)
    assert layout.size == 24
    assert str(layout) == "(4,(2,3)):(2,(1,8))"
    assert str(layout[1]) == "(2,3):(1,8)"


def test_bad_layouts_are_refused():
    with pytest.raises(LayoutError, match="nested"):
        Layout((2, 3), (1, (2, 3)))
    with pytest.raises(LayoutError, match="empty"):
        Layout((2, 0), (1, 2))
    with pytest.raises(LayoutError, match="deeper"):
        Layout((2, 2), (1, 2))((1, (0, 1)))


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 4), st.integers(3, 5))
def test_swizzles_are_their_own_inverse(bits, base, shift):
    swizzle = Swizzle(bits, base, shift)
    image = [swizzle(x) for x in range(1 << 12)]
    assert sorted(image) == list(range(1 << 12))
    assert [swizzle(x) for x in image] == list(range(1 << 12))
    block = 1 << base
    assert all(image[x + 1] == image[x] + 1 for x in range(1 << 12) if (x + 1) % block)


def test_swizzles_that_mix_bits_with_themselves_are_refused():
    with pytest.raises(ValueError, match="mix"):
        Swizzle(3, 4, 2)


@pytest.mark.parametrize("form", ATOMS)
def test_fragments_cover_their_tile_once(form):
    atom = ATOMS[form]
    for fragment in (atom.a, atom.b, atom.c):
        offsets = [fragment.layout(i) for i in range(fragment.layout.size)]
        assert sorted(offsets) == list(range(len(offsets)))
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

        matrices = ldmatrix_rows(fragment, address)
        assert matrices is not None
        for lane in range(32):
            row, half = lane & 15, lane >> 4
            turned = (row * row_bytes & swizzle.source_mask) >> swizzle.shift
            column = (half << 4) ^ turned
            assert matrices[lane // 8][lane % 8] == row * row_bytes + (column ^ (32 * step))
        assert all(wavefronts(rows) == 1 for rows in matrices)


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
