"""What the PTX machine counts: access patterns whose costs are known, and whole launches."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import Device, parse
from abqc.runtime.ptx.counters import (
    Counters,
    Counts,
    TensorWork,
    Traffic,
    divergent_warps,
    instruction_class,
    sectors,
    shared_wavefronts,
)
from abqc.runtime.ptx.syntax import Instruction

LANES = np.arange(32)


@pytest.mark.parametrize(
    ("addresses", "size", "touched", "needed"),
    [
        (LANES * 4, 4, 4, 4),  # 128 contiguous bytes
        (LANES * 4 + 16, 4, 5, 4),  # the same, shifted by half a sector
        (LANES * 16, 16, 16, 16),
        (LANES * 8, 4, 8, 4),  # every other word
        (LANES * 128, 4, 32, 4),  # a column
        (LANES * 0, 4, 1, 1),  # one word for everybody
        (LANES, 1, 1, 1),
        (LANES[::-1] * 4, 4, 4, 4),  # the order does not matter
    ],
)
def test_sectors(addresses: np.ndarray, size: int, touched: int, needed: int) -> None:
    first, second = sectors(LANES, addresses, size)
    assert (first.tolist(), second.tolist()) == ([touched], [needed])


def test_sectors_of_several_warps() -> None:
    lanes = np.array([0, 1, 2, 64, 65])
    touched, needed = sectors(lanes, np.array([0, 4, 8, 0, 4096]), 4)
    assert touched.tolist() == [1, 2]
    assert needed.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("addresses", "size", "wavefronts"),
    [
        (LANES * 4, 4, [1]),  # a bank each
        (LANES * 8, 4, [2]),
        (LANES * 128, 4, [32]),  # a column of a matrix of 32 words
        (LANES * 132, 4, [1]),  # the same with one word of padding
        (LANES * 0, 4, [1]),  # broadcast
        (LANES % 2 * 128, 4, [2]),  # two words of one bank
        (LANES // 4 * 4, 1, [1]),
        (LANES * 8, 8, [1, 1]),  # half a warp at a time
        (LANES * 16, 8, [2, 2]),
        (LANES * 16, 16, [1, 1, 1, 1]),  # a quarter at a time
        (LANES * 128, 16, [8, 8, 8, 8]),  # rows of ldmatrix without padding
        (LANES * 144, 16, [1, 1, 1, 1]),  # and with 16 bytes of it
        ((LANES * 128) + (LANES % 8 * 16), 16, [1, 1, 1, 1]),  # swizzled
    ],
)
def test_shared_wavefronts(addresses: np.ndarray, size: int, wavefronts: list[int]) -> None:
    assert shared_wavefronts(LANES, addresses, size).tolist() == wavefronts


def test_lanes_of_other_warps_do_not_conflict() -> None:
    lanes = np.array([0, 32, 64, 65])
    assert shared_wavefronts(lanes, np.array([0, 128, 0, 128]), 4).tolist() == [1, 1, 2]


def test_divergent_warps() -> None:
    executing = np.arange(96)
    active = np.concatenate([np.arange(5), np.arange(32, 64)])
    assert divergent_warps(executing, active) == 1
    assert divergent_warps(executing, executing) == 0
    assert divergent_warps(executing, executing[:0]) == 0


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("add.s32", "integer"),
        ("mad.wide.u32", "integer"),
        ("lop3.b32", "integer"),
        ("dp4a.s32.u32", "integer"),
        ("fma.rn.f32", "float"),
        ("fma.rn.f16x2", "half"),
        ("fma.rn.f64", "double"),
        ("ex2.approx.ftz.f32", "special"),
        ("div.rn.f32", "special"),
        ("div.s32", "integer"),
        ("cvt.rn.f16.f32", "convert"),
        ("ld.global.nc.v4.u32", "ld.global"),
        ("st.shared.u32", "st.shared"),
        ("ld.u32", "ld.generic"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared::cta.b16", "ldmatrix.shared"),
        ("cp.async.cg.shared.global", "cp.async"),
        ("atom.global.add.u32", "atom.global"),
        ("shfl.sync.bfly.b32", "shuffle"),
        ("bar.sync", "barrier"),
        ("bra.uni", "control"),
        ("setmaxnreg.inc.sync.aligned.u32", "control"),
        ("cp.async.bulk.commit_group", "cp.async.bulk"),
        ("mbarrier.arrive.shared::cta.b64", "mbarrier"),
        ("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8", "tensor"),
        ("wgmma.wait_group.sync.aligned", "fence"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "tensor"),
    ],
)
def test_classes(opcode: str, kind: str) -> None:
    name, *modifiers = opcode.split(".")
    assert instruction_class(Instruction(name, tuple(modifiers), (), None, 1, opcode)) == kind


# -- launches ---------------------------------------------------------------------------------

FRAME = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry counted(.param .u64 input, .param .u64 output)
{{
    .reg .pred %p<8>;
    .reg .b32 %r<32>;
    .reg .b64 %rd<16>;
    .shared .align 16 .b8 s[8192];
    ld.param.u64 %rd1, [input];
    ld.param.u64 %rd2, [output];
    mov.u32 %r1, %tid.x;
{body}
    ret;
}}
"""


def counts_of(body: str, blocks: int = 2, threads: int = 64) -> Counts:
    device = Device(capability=(8, 0), memory_bytes=1 << 20)
    kernel = parse(FRAME.format(body=body)).kernels["counted"]
    source, target = device.allocate(1 << 14), device.allocate(1 << 14)
    device.write(source, np.zeros(1 << 14, np.uint8))
    counters = Counters()
    device.launch(kernel, (blocks, 1, 1), (threads, 1, 1), [source, target], counters=counters)
    return counters.counts()


def test_global_traffic() -> None:
    counts = counts_of("""
    mul.wide.u32 %rd3, %r1, 16;
    add.u64 %rd4, %rd1, %rd3;
    ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd4];
    mul.wide.u32 %rd5, %r1, 128;
    add.u64 %rd6, %rd2, %rd5;
    st.global.u32 [%rd6], %r2;
    """)
    assert counts.kernels == ("counted",)
    assert (counts.blocks, counts.threads_launched) == (2, 128)
    assert counts.loads["global"] == Traffic(accesses=4, bytes=128 * 16)
    assert counts.stores["global"] == Traffic(accesses=4, bytes=128 * 4)
    assert counts.sectors_touched == 4 * 16 + 4 * 32
    assert counts.sectors_needed == 4 * 16 + 4 * 4
    assert counts.uncoalesced_accesses == 4
    assert 0.4 < counts.coalescing < 0.42
    assert counts.threads["ld.global"] == 128
    assert counts.warps["ld.global"] == 4
    assert counts.threads["integer"] == 4 * 128


def test_generic_addresses_count_where_they_lie() -> None:
    counts = counts_of("""
    mov.u64 %rd3, s;
    cvta.shared.u64 %rd4, %rd3;
    mul.wide.u32 %rd5, %r1, 4;
    add.u64 %rd6, %rd4, %rd5;
    st.u32 [%rd6], %r1;
    add.u64 %rd7, %rd1, %rd5;
    ld.u32 %r2, [%rd7];
    """)
    assert counts.stores["shared"].bytes == 128 * 4
    assert counts.loads["global"].bytes == 128 * 4
    assert counts.shared_phases == 4
    assert counts.bank_conflicts == 0


def test_bank_conflicts() -> None:
    counts = counts_of("""
    shl.b32 %r2, %r1, 3;
    mov.u32 %r3, s;
    add.u32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r1;
    bar.sync 0;
    ld.shared.u32 %r5, [%r4];
    """)
    assert counts.shared_phases == 8
    assert counts.bank_conflicts == 8
    assert counts.barriers == 4


def test_divergent_branches() -> None:
    counts = counts_of("""
    setp.lt.u32 %p1, %r1, 40;
    @%p1 bra BELOW;
    add.u32 %r2, %r1, 1;
BELOW:
    setp.lt.u32 %p2, %r1, 32;
    @%p2 bra DONE;
    add.u32 %r2, %r1, 1;
DONE:
    """)
    assert counts.branches == 8
    assert counts.divergent_branches == 2  # the first branch, in one warp of each block
    assert counts.threads["integer"] - 2 * 128 == 2 * 24 + 2 * 32


def test_tensor_operations_and_matrices() -> None:
    counts = counts_of("""
    mov.u32 %r3, s;
    shl.b32 %r2, %r1, 4;
    add.u32 %r4, %r3, %r2;
    mov.u32 %r5, 0;
    st.shared.v4.u32 [%r4], {%r5, %r5, %r5, %r5};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r6, %r7, %r8, %r9}, [%r4];
    mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32
        {%r10, %r11, %r12, %r13}, {%r6, %r7, %r8, %r9}, {%r6, %r7}, {%r5, %r5, %r5, %r5};
    mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc
        {%r10, %r11, %r12, %r13}, {%r6, %r7, %r8, %r9}, {%r6, %r7}, {%r5, %r5, %r5, %r5};
    """)
    assert counts.tensor == {
        "u8 x s8 m16n8k32": TensorWork(4, 4 * 2 * 16 * 8 * 32),
        "b1 x b1 m16n8k256": TensorWork(4, 4 * 2 * 16 * 8 * 256),
    }
    assert counts.tensor_operations == 4 * 2 * 16 * 8 * 288
    assert counts.warps["tensor"] == 8
    assert counts.loads["shared"].bytes == 4 * 512
    assert counts.bank_conflicts == 0


def test_cp_async_counts_both_sides() -> None:
    counts = counts_of("""
    shl.b32 %r2, %r1, 4;
    mov.u32 %r3, s;
    add.u32 %r4, %r3, %r2;
    cvt.u64.u32 %rd3, %r2;
    add.u64 %rd4, %rd1, %rd3;
    cp.async.cg.shared.global [%r4], [%rd4], 16;
    cp.async.wait_all;
    """)
    assert counts.loads["global"].bytes == 128 * 16
    assert counts.stores["shared"].bytes == 128 * 16
    assert counts.uncoalesced_accesses == 0


def test_the_report_is_readable() -> None:
    text = str(counts_of("    mul.wide.u32 %rd3, %r1, 4;"))
    assert text.startswith("counted: 2 blocks, 128 threads")
    assert "integer" in text
    assert "global sectors: 0 touched" in text


def test_counters_add_up_over_launches() -> None:
    device = Device(capability=(8, 0), memory_bytes=1 << 20)
    kernel = parse(FRAME.format(body="    add.u32 %r2, %r1, %r1;")).kernels["counted"]
    counters = Counters()
    for blocks in (1, 3):
        device.launch(kernel, (blocks, 1, 1), (32, 1, 1), [0, 0], counters=counters)
    counts = counters.counts()
    assert counts.kernels == ("counted",)
    assert counts.blocks == 4
    assert counts.warps["integer"] == 4
