"""Global, shared, local, constant and parameter memory; allocations; races."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from abqc.runtime.ptx import Device, PtxFault, Unwritten, parse, run_kernel
from abqc.runtime.ptx.memory import GLOBAL_BASE, GlobalMemory

HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"
A = np.arange(256, dtype="u4")

# %a: this thread's 16 bytes of input, %o: its element of the output, %s: its 16 bytes of `s`.
KERNEL = """
.visible .entry k(.param .u64 input, .param .u64 output)
{
    .reg .pred %p<4>;
    .reg .b16 %h<8>;
    .reg .b32 %r<16>;
    .reg .b32 %t, %s, %s0;
    .reg .b64 %l<16>;
    .reg .b64 %a, %o;
    .shared .align 16 .b8 s[2048];
    .local .align 16 .b8 depot[64];
    ld.param.u64 %a, [input];
    ld.param.u64 %o, [output];
    mov.u32 %t, %tid.x;
    mad.wide.u32 %a, %t, 16, %a;
    mad.wide.u32 %o, %t, 4, %o;
    mov.u32 %s0, s;
    mad.lo.u32 %s, %t, 16, %s0;
    BODY
    st.global.u32 [%o], %r1;
    ret;
}
"""


def run(body: str, before: str = "", **options) -> np.ndarray:
    text = HEADER + before + KERNEL.replace("BODY", body)
    device = Device(**options)
    return run_kernel(text, "k", 2, 64, [A, np.zeros(64, "u4")], device=device)[1]


def fault(body: str, message: str, before: str = "", **options) -> PtxFault:
    with pytest.raises(PtxFault, match=message) as error:
        run(body, before, **options)
    return error.value


def test_vectors():
    lines = "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%a]; add.u32 %r1, %r1, %r4;"
    assert (run(lines) == 8 * np.arange(64) + 3).all()
    lines = """
    ld.global.v2.b64 {%l1, %l2}, [%a];
    st.shared.v2.b64 [%s], {%l2, %l1};
    ld.shared.v4.b32 {_, _, %r1, _}, [%s];
    """
    assert (run(lines) == 4 * np.arange(64)).all()


def test_bytes_are_extended():
    lines = "mov.u32 %r2, 0x80FF; st.shared.b16 [%s], %r2; ld.shared.OP %r1, [%s];"
    for op, value in {"u8": 0xFF, "s8": 0xFFFFFFFF, "s16": 0xFFFF80FF, "u16": 0x80FF}.items():
        assert (run(lines.replace("OP", op)) == value).all()


def test_local_memory_is_of_the_thread():
    lines = """
    mov.u64 %l1, depot;
    cvta.local.u64 %l2, %l1;
    st.local.u32 [%l1+4], %t;
    st.u32 [%l2+8], %t;
    ld.u32 %r1, [%l2+4];
    ld.local.u32 %r2, [depot+8];
    add.u32 %r1, %r1, %r2;
    """
    assert (run(lines) == 2 * np.arange(64)).all()


def test_generic_addresses():
    lines = """
    cvt.u64.u32 %l1, %s;
    cvta.shared.u64 %l2, %l1;
    and.b32 %r2, %t, 1;
    setp.eq.u32 %p0, %r2, 0;
    st.shared.u32 [%s], %t;
    selp.b64 %l3, %l2, %a, %p0;
    ld.u32 %r1, [%l3];
    isspacep.shared %p1, %l3;
    @%p1 add.u32 %r1, %r1, 1000;
    """
    t = np.arange(64)
    assert (run(lines) == np.where(t % 2 == 0, t + 1000, 4 * t)).all()


def test_variables_of_the_module():
    before = """
    .const .align 4 .b8 table[16] = {7, 0, 0, 0, 9, 0, 0, 0, 1};
    .global .align 8 .u64 pointer = table+4;
    .global .align 4 .u32 counter;
    """
    lines = """
    ld.const.u32 %r1, [table];
    ld.global.u64 %l1, [pointer];
    ld.u32 %r2, [%l1];
    ld.const.u32 %r3, [table+12];
    add.u32 %r1, %r1, %r2;
    add.u32 %r1, %r1, %r3;
    red.global.add.u32 [counter], 1;
    """
    assert (run(lines, before) == 16).all()


def test_variables_live_as_long_as_the_module():
    text = HEADER + ".global .u32 n; .entry k() { red.global.add.u32 [n], 1; ret; }"
    module, device = parse(text), Device()
    for _ in range(2):
        device.launch(module.kernels["k"], (3, 1, 1), (32, 1, 1), [])
    assert device.read(device.load(module)["n"], 4).view("u4")[0] == 192
    device.unload(module)
    assert device.memory.used == 0


def test_parameters():
    text = (
        HEADER
        + """
    .entry k(.param .u64 out, .param .u16 h, .param .align 8 .b8 s[16], .param .f32 f)
    {
        .reg .b64 %l<6>; .reg .f32 %f<6>; .reg .b16 %h<3>; .reg .b32 %r<4>;
        ld.param.u64 %l1, [out];
        ld.param.u16 %h1, [h];
        ld.param.v2.f32 {%f1, %f2}, [s+8];
        ld.param.f32 %f3, [f];
        mov.u64 %l2, s;
        cvta.param.u64 %l3, %l2;
        ld.param.u32 %r1, [%l2];
        cvt.u32.u16 %r2, %h1;
        st.global.u32 [%l1], %r1;
        st.global.u32 [%l1+4], %r2;
        st.global.f32 [%l1+8], %f1;
        st.global.f32 [%l1+12], %f2;
        st.global.f32 [%l1+16], %f3;
        ret;
    }
    """
    )
    out = np.zeros(5, "u4")
    data = struct.pack("<iiff", 42, 0, 1.5, 2.5)
    result = run_kernel(text, "k", 1, 1, [out, -1, data, 3.5])[0]
    assert result[:2].tolist() == [42, 65535]
    assert result[2:].view("f4").tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "ld.global.u32 %r1, [%a+1024];",
            "outside of any allocation: .* in the allocation of 1024",
        ),
        ("ld.global.u32 %r1, [%a+2];", "misaligned"),
        ("ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%a+4];", "misaligned"),
        ("mov.u64 %l1, 64; ld.global.u32 %r1, [%l1];", "out of bounds"),
        ("ld.shared.u32 %r1, [%s];", "never written"),
        ("ld.shared.u32 %r1, [%s+2048];", "out of bounds"),
        ("ld.local.u32 %r1, [depot];", "never written"),
        ("st.local.u32 [depot+64], %t; mov.u32 %r1, 0;", "out of bounds"),
    ],
)
def test_faults(body, message):
    error = fault(body, message)
    assert error.kernel == "k" and error.line is not None and error.text in body
    assert error.block == (0, 0, 0)


def test_the_check_of_unwritten_bytes_can_be_off():
    run("ld.shared.u32 %r1, [%s];", check_unwritten=False)


def test_lanes_that_disagree_about_global_memory():
    fault("mov.u32 %r1, %t; ld.param.u64 %o, [output];", "different values")
    run("mov.u32 %r1, 5; ld.param.u64 %o, [output];")


NEIGHBOUR = "xor.b32 %r3, %s, 16;"
FAR = "xor.b32 %r3, %s, 512;"


@pytest.mark.parametrize(
    "body",
    [
        f"st.shared.u32 [%s], %t; {NEIGHBOUR} ld.shared.u32 %r1, [%r3];",
        f"st.shared.u32 [%s], %t; bar.warp.sync -1; {FAR} ld.shared.u32 %r1, [%r3];",
        f"st.shared.u32 [%s], %t; bar.sync 0; {NEIGHBOUR} ld.shared.u32 %r1, [%r3];"
        "st.shared.u32 [%s], %t;",
        "st.shared.u32 [%s0], %t; mov.u32 %r1, 0;",
        f"st.shared.u32 [%s], %t; {NEIGHBOUR} st.shared.u32 [%r3], %t; mov.u32 %r1, 0;",
        f"st.shared.u32 [%s], 0; {NEIGHBOUR} atom.shared.add.u32 %r1, [%r3], 1;",
        "cp.async.ca.shared.global [%s], [%a], 16; cp.async.commit_group; bar.sync 0;"
        "ld.shared.u32 %r1, [%s];",
        "cp.async.ca.shared.global [%s], [%a], 16; cp.async.wait_group 0; ld.shared.u32 %r1, [%s];",
        f"cp.async.ca.shared.global [%s], [%a], 16; cp.async.wait_all; {NEIGHBOUR}"
        "ld.shared.u32 %r1, [%r3];",
    ],
)
def test_races(body):
    fault(body, "race in shared memory")
    run(body, check_races=False, check_unwritten=False)


@pytest.mark.parametrize(
    "body",
    [
        f"st.shared.u32 [%s], %t; bar.sync 0; {FAR} ld.shared.u32 %r1, [%r3];",
        f"st.shared.u32 [%s], %t; bar.warp.sync -1; {NEIGHBOUR} ld.shared.u32 %r1, [%r3];",
        f"st.shared.u32 [%s], %t; bar.warp.sync -1; {NEIGHBOUR} ld.shared.u32 %r1, [%r3];"
        "bar.warp.sync -1; st.shared.u32 [%r3], %r1;",
        "st.shared.u32 [%s], %t; ld.shared.u32 %r1, [%s]; st.shared.u32 [%s], %r1;",
        "st.shared.u32 [%s0], 7; mov.u32 %r1, 0;",
        "st.shared.u8 [%s], %t; st.shared.u8 [%s+1], %t; ld.shared.u16 %r1, [%s];",
        "st.shared.u32 [%s], 0; bar.sync 0; atom.shared.add.u32 %r1, [%s0], 1;"
        "atom.shared.add.u32 %r1, [%s0+16], 1;",
        f"cp.async.ca.shared.global [%s], [%a], 16; cp.async.wait_all; bar.sync 0; {FAR}"
        "ld.shared.u32 %r1, [%r3];",
        f"st.shared.u32 [%s], %t; barrier.sync 1, 64; {FAR} ld.shared.u32 %r1, [%r3];",
    ],
)
def test_no_races(body):
    run(body)


def test_bytes_of_neighbours_do_not_race():
    lines = """
    add.u32 %r2, %s0, %t;
    st.shared.u8 [%r2], %t;
    ld.shared.u8 %r1, [%r2];
    """
    assert (run(lines) == np.arange(64)).all()


def test_async_copies():
    lines = """
    cp.async.cg.shared.global [%s], [%a], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%s+1024], [%a], 8, 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    xor.b32 %r3, %s, 512;
    ld.shared.u32 %r1, [%r3];
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.v2.u32 {%r4, %r5}, [%r3+1024];
    add.u32 %r1, %r1, %r4;
    add.u32 %r1, %r1, %r5;
    """
    assert (run(lines) == 8 * (np.arange(64) ^ 32)).all()


def test_async_copies_of_nothing_read_nothing():
    lines = """
    mov.u64 %l1, 0;
    cp.async.ca.shared.global [%s], [%l1], 16, 0;
    cp.async.wait_all;
    ld.shared.u32 %r1, [%s];
    """
    assert (run(lines) == 0).all()


def test_allocations():
    memory = GlobalMemory(1 << 16)
    first, second = memory.allocate(100), memory.allocate(200)
    assert first >= GLOBAL_BASE and first % 256 == 0 and second >= first + 100 + 256
    memory.write(first, np.arange(100, dtype=np.uint8))
    assert (memory.read(first, 100) == np.arange(100)).all()
    memory.free(first)
    assert memory.allocate(50) == first
    with pytest.raises(PtxFault, match="no allocation"):
        memory.free(second + 4)
    with pytest.raises(PtxFault, match="by the host"):
        memory.write(second, np.zeros(201, np.uint8))
    with pytest.raises(PtxFault, match="out of device memory"):
        memory.allocate(1 << 16)


def test_what_nobody_wrote_is_poison_and_no_kernel_reads_it():
    ptx = HEADER + KERNEL.replace("BODY", "ld.global.u32 %r1, [%a];")
    with pytest.raises(PtxFault, match="never written"):
        run_kernel(ptx, "k", 1, 64, [Unwritten(256, np.uint32), Unwritten(64)])
    y = run_kernel(ptx, "k", 1, 32, [A, Unwritten(64, np.uint32)])[1]
    assert (y[:32] == A[:128:4]).all() and (y[32:] == 0xFFFF_FFFF).all()
