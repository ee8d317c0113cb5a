"""Planted faults: each kernel does one thing wrong, and the PTX machine names the line."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import Device, PtxFault, PtxSyntaxError, parse

THREADS = 64
SIZE = THREADS * 4  # bytes of the buffers

# Around every body: %rd1 is the input, %rd2 the output, %rd3 this thread's element of the input,
# %rd4 of the output, %rs this thread's element of the shared array `s`, %t the thread.
KERNEL = """
.version 8.0
.target sm_80
.address_size 64

.visible .entry faulty(.param .u64 input, .param .u64 output)
{{
    .reg .pred %p<8>;
    .reg .b32 %r<32>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<16>;
    .reg .b32 %t, %rs;
    .shared .align 16 .b8 s[1024];
    .local .align 4 .b8 l[64];
    ld.param.u64 %rd1, [input];
    ld.param.u64 %rd2, [output];
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    mov.u32 %t, %tid.x;
    mul.wide.u32 %rd5, %t, 4;
    add.s64 %rd3, %rd1, %rd5;
    add.s64 %rd4, %rd2, %rd5;
    mov.u32 %r31, s;
    shl.b32 %r30, %t, 2;
    add.u32 %rs, %r31, %r30;
{body}
    ret;
}}
"""


def kernel_with(body: str) -> tuple[str, int | None]:
    """The PTX text, and the line of it that the comment `// here` marks."""
    text = KERNEL.format(body=body)
    marked = [number for number, line in enumerate(text.split("\n"), 1) if "// here" in line]
    assert len(marked) <= 1
    return text, marked[0] if marked else None


def launch(body: str, device: Device | None = None, grid: int = 1) -> np.ndarray:
    """The output buffer."""
    device = device or Device(capability=(8, 0), memory_bytes=1 << 20)
    kernel = parse(kernel_with(body)[0]).kernels["faulty"]
    source, target = device.allocate(SIZE), device.allocate(SIZE)
    device.write(source, np.arange(THREADS, dtype=np.uint32))
    device.launch(kernel, (grid, 1, 1), (THREADS, 1, 1), [source, target])
    return device.read(target, SIZE).view(np.uint32)


def fault_of(body: str) -> PtxFault:
    """The fault that the kernel raises, which must name the marked line."""
    with pytest.raises(PtxFault) as caught:
        launch(body)
    fault = caught.value
    assert fault.kernel == "faulty"
    assert fault.line == kernel_with(body)[1], str(fault)
    assert str(fault.line) in str(fault)
    return fault


COPY = """
    ld.global.u32 %r1, [%rd3];
    st.global.u32 [%rd4], %r1;
"""


def test_the_frame_is_right() -> None:
    np.testing.assert_array_equal(launch(COPY), np.arange(THREADS))


# -- places -----------------------------------------------------------------------------------


def test_store_off_by_one() -> None:
    fault = fault_of("""
    ld.global.u32 %r1, [%rd3];
    st.global.u32 [%rd4+4], %r1;  // here
    """)
    assert fault.thread == (THREADS - 1, 0, 0)
    assert fault.block == (0, 0, 0)
    assert "st.global.u32" in fault.text


def test_load_out_of_bounds() -> None:
    fault = fault_of("""
    ld.global.u32 %r1, [%rd3+-4];  // here
    st.global.u32 [%rd4], %r1;
    """)
    assert fault.thread == (0, 0, 0)


def test_load_from_nowhere() -> None:
    fault_of("""
    ld.global.u32 %r1, [%rd5];  // here
    st.global.u32 [%rd4], %r1;
    """)


def test_vector_that_ends_beyond_the_buffer() -> None:
    fault_of("""
    and.b64 %rd6, %rd5, -16;
    add.s64 %rd7, %rd1, %rd6;
    ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd7+16];  // here
    """)


def test_misaligned_vector_load() -> None:
    fault = fault_of("""
    ld.global.v2.u32 {%r1, %r2}, [%rd1];
    ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1+8];  // here
    """)
    assert "16" in fault.reason


def test_misaligned_shared_store() -> None:
    fault_of("""
    mov.u64 %rd8, 0;
    st.shared.u64 [%rs], %rd8;  // here
    """)


def test_shared_store_beyond_the_array() -> None:
    fault_of("""
    st.shared.u32 [%rs+960], %t;  // here
    """)


def test_misaligned_ldmatrix() -> None:
    fault_of("""
    st.shared.u32 [%rs], %t;
    st.shared.u32 [%rs+256], %t;
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%rs];  // here
    """)


def test_use_after_free() -> None:
    device = Device(capability=(8, 0), memory_bytes=1 << 20)
    kernel = parse(kernel_with(COPY)[0]).kernels["faulty"]
    source, target = device.allocate(SIZE), device.allocate(SIZE)
    device.write(source, np.zeros(THREADS, np.uint32))
    device.free(source)
    with pytest.raises(PtxFault, match=r"ld\.global\.u32"):
        device.launch(kernel, (1, 1, 1), (THREADS, 1, 1), [source, target])


# -- what was never written -------------------------------------------------------------------


def test_output_never_written_then_read() -> None:
    """The first kernel leaves the second half of its output; the second kernel reads all of it."""
    device = Device(capability=(8, 0), memory_bytes=1 << 20)
    half = kernel_with("""
    setp.ge.u32 %p1, %t, 32;
    @%p1 bra DONE;
    ld.global.u32 %r1, [%rd3];
    st.global.u32 [%rd4], %r1;
DONE:
    """)[0]
    buffers = [device.allocate(SIZE) for _ in range(3)]
    device.write(buffers[0], np.zeros(THREADS, np.uint32))
    first, second = (parse(text).kernels["faulty"] for text in (half, kernel_with(COPY)[0]))
    device.launch(first, (1, 1, 1), (THREADS, 1, 1), buffers[:2])
    with pytest.raises(PtxFault, match="never written") as caught:
        device.launch(second, (1, 1, 1), (THREADS, 1, 1), buffers[1:])
    assert caught.value.thread == (32, 0, 0)
    assert "ld.global.u32" in caught.value.text


def test_read_of_unwritten_shared_memory() -> None:
    fault = fault_of("""
    st.shared.u32 [%rs], %t;
    bar.sync 0;
    ld.shared.u32 %r1, [%rs+256];  // here
    st.global.u32 [%rd4], %r1;
    """)
    assert "never written" in fault.reason


def test_shared_memory_is_fresh_in_every_block() -> None:
    """Block 1 reads what only block 0 wrote."""
    body = """
    mov.u32 %r2, %ctaid.x;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra SKIP;
    st.shared.u32 [%rs], %t;
SKIP:
    bar.sync 0;
    ld.shared.u32 %r1, [%rs];  // here
    """
    with pytest.raises(PtxFault, match="never written") as caught:
        launch(body, grid=2)
    assert caught.value.line == kernel_with(body)[1]
    assert caught.value.block == (1, 0, 0)


def test_read_of_unwritten_local_memory() -> None:
    fault_of("""
    mov.u32 %r2, l;
    st.local.u32 [%r2+4], %t;
    ld.local.u32 %r1, [%r2+8];  // here
    """)


# -- races and barriers -----------------------------------------------------------------------


def test_missing_barrier_before_a_read() -> None:
    fault = fault_of("""
    st.shared.u32 [%rs], %t;
    xor.b32 %r1, %r30, 128;
    add.u32 %r2, %r31, %r1;
    ld.shared.u32 %r3, [%r2];  // here
    st.global.u32 [%rd4], %r3;
    """)
    assert "race" in fault.reason


def test_missing_barrier_before_a_write() -> None:
    """The second tile overwrites the first while another warp may still read it."""
    fault = fault_of("""
    st.shared.u32 [%rs], %t;
    bar.sync 0;
    xor.b32 %r1, %r30, 128;
    add.u32 %r2, %r31, %r1;
    ld.shared.u32 %r3, [%r2];
    st.shared.u32 [%rs], %r3;  // here
    """)
    assert "race" in fault.reason


def test_two_warps_write_different_values() -> None:
    fault = fault_of("""
    and.b32 %r1, %r30, 127;
    add.u32 %r2, %r31, %r1;
    st.shared.u32 [%r2], %t;  // here
    """)
    assert "race" in fault.reason


def test_barriers_in_the_right_places_are_no_race() -> None:
    result = launch("""
    st.shared.u32 [%rs], %t;
    bar.sync 0;
    xor.b32 %r1, %r30, 128;
    add.u32 %r2, %r31, %r1;
    ld.shared.u32 %r3, [%r2];
    bar.sync 0;
    st.shared.u32 [%rs], %r3;
    bar.sync 0;
    ld.shared.u32 %r4, [%r2];
    st.global.u32 [%rd4], %r4;
    """)
    np.testing.assert_array_equal(result, np.arange(THREADS))


def test_shared_atomics_are_no_race() -> None:
    result = launch("""
    setp.ne.u32 %p1, %t, 0;
    @%p1 bra WAIT;
    mov.u32 %r1, 0;
    st.shared.u32 [s], %r1;
WAIT:
    bar.sync 0;
    atom.shared.add.u32 %r2, [s], 1;
    bar.sync 0;
    ld.shared.u32 %r3, [s];
    st.global.u32 [%rd4], %r3;
    """)
    assert (result == THREADS).all()


def test_barrier_under_divergence() -> None:
    """bar.sync is aligned: all threads of a warp must come to the same one."""
    fault_of("""
    setp.gt.u32 %p1, %t, 15;
    @%p1 bra AROUND;
    st.shared.u32 [%rs], %t;
    bar.sync 0;  // here
AROUND:
    st.global.u32 [%rd4], %t;
    bar.sync 0;
    """)


def test_threads_that_ended_need_not_come_to_a_barrier() -> None:
    result = launch("""
    st.global.u32 [%rd4], %t;
    setp.gt.u32 %p1, %t, 39;
    @%p1 exit;
    st.shared.u32 [%rs], %t;
    bar.sync 0;
    sub.u32 %r1, 156, %r30;
    add.u32 %r2, %r31, %r1;
    ld.shared.u32 %r3, [%r2];
    st.global.u32 [%rd4], %r3;
    """)
    np.testing.assert_array_equal(result, [*range(39, -1, -1), *range(40, 64)])


def test_barrier_that_one_warp_never_reaches() -> None:
    fault = fault_of("""
    setp.gt.u32 %p1, %t, 31;
    @%p1 bra OTHER;
    bar.sync 1;  // here
    bra DONE;
OTHER:
    bar.sync 2;
DONE:
    st.global.u32 [%rd4], %t;
    """)
    assert "barrier 1" in fault.reason


# -- whole warps ------------------------------------------------------------------------------


def test_member_mask_names_lanes_that_do_not_come() -> None:
    fault_of("""
    and.b32 %r1, %t, 31;
    setp.gt.u32 %p1, %r1, 15;
    @%p1 bra DONE;
    shfl.sync.down.b32 %r2, %t, 1, 31, -1;  // here
    st.global.u32 [%rd4], %r2;
DONE:
    """)


def test_member_mask_lacks_the_lane_itself() -> None:
    fault_of("""
    vote.sync.ballot.b32 %r2, 1, 0x0000ffff;  // here
    st.global.u32 [%rd4], %r2;
    """)


def test_mma_under_divergence() -> None:
    fault_of("""
    mov.u32 %r4, 0;
    and.b32 %r1, %t, 31;
    setp.eq.u32 %p1, %r1, 7;
    @%p1 bra DONE;
    mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%r2, %r3}, {%t}, {%t}, {%r4, %r4};  // here
    st.global.u32 [%rd4], %r2;
DONE:
    """)


# -- cp.async ---------------------------------------------------------------------------------

CP_ASYNC = """
    shl.b32 %r1, %r30, 2;
    and.b32 %r1, %r1, 255;
    add.u32 %r2, %r31, %r1;
    cvt.u64.u32 %rd6, %r1;
    add.s64 %rd7, %rd1, %rd6;
    setp.gt.u32 %p1, %t, 15;
    @!%p1 cp.async.cg.shared.global [%r2], [%rd7], 16;
    cp.async.commit_group;
"""


def test_cp_async_without_wait() -> None:
    fault_of(f"""{CP_ASYNC}
    bar.sync 0;
    ld.shared.u32 %r3, [%rs];  // here
    st.global.u32 [%rd4], %r3;
    """)


def test_cp_async_without_barrier() -> None:
    """Each thread waits for its own copies; those of others need a barrier."""
    fault_of(f"""{CP_ASYNC}
    cp.async.wait_group 0;
    ld.shared.u32 %r3, [%rs];  // here
    st.global.u32 [%rd4], %r3;
    """)


def test_cp_async_waited_for() -> None:
    result = launch(f"""{CP_ASYNC}
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.u32 %r3, [%rs];
    st.global.u32 [%rd4], %r3;
    """)
    np.testing.assert_array_equal(result, np.arange(THREADS))


def test_cp_async_overwrites_what_is_still_read() -> None:
    """The next tile is on its way into a buffer before all threads have read the last one."""
    fault_of(f"""{CP_ASYNC}
    cp.async.wait_group 0;
    bar.sync 0;
    ld.shared.u32 %r3, [%rs];
    @!%p1 cp.async.cg.shared.global [%r2], [%rd7], 16;  // here
    cp.async.wait_all;
    bar.sync 0;
    st.global.u32 [%rd4], %r3;
    """)


# -- what the machine does not know, and what never ends -----------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate.u32 %r1, %t;",
        "add.u32.sideways %r1, %t, %t;",
        "mma.sync.aligned.m16n8k24.row.col.s32.u8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4};",
        "add.u32 %r1, %t, %undeclared;",
        "bra NOWHERE;",
    ],
)
def test_unknown_instructions_are_errors(line: str) -> None:
    body = f"    {line}  // here"
    with pytest.raises((PtxSyntaxError, PtxFault)) as caught:
        launch(body)
    assert caught.value.line == kernel_with(body)[1]


def test_endless_loop() -> None:
    device = Device(capability=(8, 0), memory_bytes=1 << 20, instruction_limit=10_000)
    with pytest.raises(PtxFault, match="instruction_limit") as caught:
        launch("AGAIN:\n    bra AGAIN;", device)
    assert caught.value.text.startswith("bra AGAIN")


def test_trap() -> None:
    fault = fault_of("""
    setp.ne.u32 %p1, %t, 40;
    @%p1 bra FINE;
    trap;  // here
FINE:
    """)
    assert fault.thread == (40, 0, 0)


@pytest.mark.parametrize(("capability", "most"), [((8, 6), 101_376), ((9, 0), 232_448)])
def test_shared_memory_is_that_of_the_gpu(capability: tuple[int, int], most: int) -> None:
    device = Device(capability, memory_bytes=1 << 20)
    kernel = parse(kernel_with("")[0]).kernels["faulty"]
    pointers = [device.allocate(SIZE), device.allocate(SIZE)]
    device.launch(kernel, (1, 1, 1), (THREADS, 1, 1), pointers, shared_bytes=most - 4096)
    with pytest.raises(PtxFault, match=f"at most {most}"):
        device.launch(kernel, (1, 1, 1), (THREADS, 1, 1), pointers, shared_bytes=most + 1)
