"""Planted faults around wgmma: each kernel does one thing wrong, and the PTX machine says which."""

from __future__ import annotations

import re

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault
from wgmma_kernel import BODY, descriptor, instruction, run, source

IMAGE = np.full(4096, 1, np.uint8)
PLAIN = descriptor(0, 128, 256)
STEP = instruction(8, 32, "s32.s8.s8")
FROM_REGISTERS = instruction(8, 32, "s32.s8.s8", "{%a0, %a1, %a2, %a3}")
FENCE, COMMIT, WAIT = (
    f"wgmma.{words};"
    for words in (
        "fence.sync.aligned",
        "commit_group.sync.aligned",
        "wait_group.sync.aligned 0",
    )
)


def fault_of(body: str, match: str, a: int = PLAIN, b: int = PLAIN, **options) -> PtxFault:
    with pytest.raises(PtxFault, match=match) as caught:
        run(8, IMAGE, body, a, b, **options)
    fault = caught.value
    lines = source(8, IMAGE, body, a, b, **options).split("\n")
    if marked := [number for number, line in enumerate(lines, 1) if "// here" in line]:
        assert [fault.line] == marked, fault
    return fault


def test_the_frame_is_right() -> None:
    assert (run(8, IMAGE, BODY.format(wgmma=STEP), PLAIN, PLAIN) == 32).all()


# -- registers ------------------------------------------------------------------------------------


def test_no_fence_at_all() -> None:
    fault_of(f"{STEP} // here\n{COMMIT}\n{WAIT}", "wgmma.fence is missing")


def test_accumulator_written_after_the_fence() -> None:
    fault = fault_of(
        f"{FENCE}\nmov.b32 %d1, 5;\n{STEP} // here\n{COMMIT}\n{WAIT}", "wgmma.fence is missing"
    )
    assert "%d1" in fault.reason


def test_fragment_written_after_the_fence() -> None:
    fault = fault_of(
        f"{FENCE}\nmov.b32 %a2, 5;\n{FROM_REGISTERS} // here\n{COMMIT}\n{WAIT}",
        "wgmma.fence is missing",
    )
    assert "%a2" in fault.reason


def test_accumulator_read_before_the_wait() -> None:
    fault = fault_of(
        f"{FENCE}\n{STEP}\n{COMMIT}\nadd.u32 %x, %d2, 1; // here\n{WAIT}", "wait_group is missing"
    )
    assert "%d2" in fault.reason


def test_wait_that_leaves_the_group_pending() -> None:
    body = f"{FENCE}\n{STEP}\n{COMMIT}\nwgmma.wait_group.sync.aligned 1;"
    fault_of(f"{body}\nadd.u32 %x, %d0, 1; // here", "wait_group is missing")


def test_wait_without_a_commit() -> None:
    fault_of(f"{FENCE}\n{STEP}\n{WAIT}\nadd.u32 %x, %d0, 1; // here", "wait_group is missing")


def test_fragment_written_before_the_wait() -> None:
    fault = fault_of(
        f"{FENCE}\n{FROM_REGISTERS}\n{COMMIT}\nmov.b32 %a0, 5; // here\n{WAIT}",
        "wait_group is missing",
    )
    assert "%a0" in fault.reason


def test_accumulators_of_another_shape() -> None:
    other = STEP.replace("k32.s32.s8.s8", "k256.s32.b1.b1.and.popc")
    fault_of(f"{FENCE}\n{STEP}\n{other} // here\n{COMMIT}\n{WAIT}", "another shape")


def test_accumulators_as_fragment() -> None:
    other = instruction(8, 32, "s32.s8.s8", "{%d0, %d1, %d2, %d3}").replace(
        "{%d0, %d1, %d2, %d3}, {%d", "{%a0, %a1, %a2, %a3}, {%d"
    )
    fault_of(f"{FENCE}\n{STEP}\n{other} // here\n{COMMIT}\n{WAIT}", "fragment of A while")


# -- shared memory --------------------------------------------------------------------------------


def test_no_proxy_fence() -> None:
    fault_of(f"{FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}", "no fence.proxy.async", fence_proxy="")


def test_proxy_fence_before_the_write() -> None:
    body = f"""
    fence.proxy.async;
    st.shared.b32 [%s], %t;
    bar.sync 0;
    {FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}
"""
    body = body.replace("st.shared", "setp.eq.u32 %p, %t, 0;\n@%p st.shared")
    fault_of(body, "no fence.proxy.async")


def test_a_proxy_fence_that_is_not_ordered_before() -> None:
    """One warp writes, arrives, and only then executes its fence; the machine runs it first."""
    body = f"""
    .shared .align 8 .b8 bar[8];
    .reg .b32 %m;
    mov.u32 %m, bar;
    setp.eq.u32 %p, %t, 0;
    @%p mbarrier.init.shared::cta.b64 [%m], 1;
    bar.sync 0;
    setp.ge.u32 %p, %t, 128;
    @%p bra consumer;
    setp.eq.u32 %p, %t, 0;
    @%p st.shared.b32 [%s], 5;
    {{before}}
    @%p mbarrier.arrive.shared::cta.b64 _, [%m];
    {{after}}
    bra done;
consumer:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%m], 0;
    @!%p bra consumer;
    {FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}
done:
"""
    fence = "fence.proxy.async;"
    late = body.replace("{before}", "").replace("{after}", fence)
    fault_of(late, "no fence.proxy.async that is ordered", threads=256)
    right = body.replace("{after}", "").replace("{before}", fence)
    assert run(8, IMAGE, right, PLAIN, PLAIN, threads=256)[1].any()


def test_a_wait_of_one_warp_for_all() -> None:
    """A wgmma begins in each warp: each of them must have seen that the bytes are there."""
    body = f"""
    .shared .align 8 .b8 bar[8];
    .reg .b32 %m;
    mov.u32 %m, bar;
    setp.eq.u32 %p, %t, 0;
    @%p mbarrier.init.shared::cta.b64 [%m], 1;
    bar.sync 0;
    setp.lt.u32 %p, %t, 128;
    @%p bra consumer;
    setp.eq.u32 %p, %t, 128;
    @%p st.shared.b32 [%s], 5;
    fence.proxy.async;
    @%p mbarrier.arrive.shared::cta.b64 _, [%m];
    bra done;
consumer:
    setp.ge.u32 %p, %t, WAITING;
    @%p bra multiply;
again:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%m], 0;
    @!%p bra again;
multiply:
    {FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}
done:
"""
    fault_of(body.replace("WAITING", "32"), "race in shared memory", threads=256)
    assert run(8, IMAGE, body.replace("WAITING", "128"), PLAIN, PLAIN, threads=256)[0].any()


def test_no_barrier_before() -> None:
    body = f"""
    setp.eq.u32 %p, %t, 3;
    @%p st.shared.b32 [%s], %t;
    fence.proxy.async;
    {FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}
"""
    fault_of(body, "race in shared memory")


def test_shared_memory_written_before_the_wait() -> None:
    body = f"""
    {FENCE}\n{STEP}\n{COMMIT}
    setp.eq.u32 %p, %t, 3;
    @%p st.shared.b32 [%s], %t; // here
    {WAIT}
"""
    fault = fault_of(body, "wgmma reads it")
    assert fault.thread == (3, 0, 0)


def test_shared_memory_written_after_the_wait_but_before_the_barrier() -> None:
    """The other warpgroup may still multiply."""
    body = f"""
    {FENCE}\n{STEP}\n{COMMIT}\n{WAIT}
    setp.eq.u32 %p, %t, 130;
    {{barrier}}
    @%p st.shared.b32 [%s], %t; // here
"""
    fault_of(body.replace("{barrier}", ""), "wgmma reads it", threads=256)
    right = body.replace("{barrier}", "bar.sync 0;")
    assert (run(8, IMAGE, right, PLAIN, PLAIN, threads=256) == 32).all()


# -- descriptors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "match"),
    [
        (descriptor(0, 128, 256, 128, base_offset=1), "base offset"),
        (descriptor(256, 16, 1024, 128), "does not start in the first row of a pattern"),
        (PLAIN | 1 << 14, "bits outside of its fields"),
        (PLAIN | 1 << 50, "base offset"),
        (descriptor(2048, 128, 512), "out of bounds"),
        (descriptor(0, 1 << 16, 256), "out of bounds"),
    ],
)
def test_descriptor(word: int, match: str) -> None:
    body = f"{FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}"
    assert re.search("A: |16 bytes out", fault_of(body, match, a=word).reason)


def test_descriptors_that_differ_between_threads() -> None:
    body = f"{FENCE}\ncvt.u64.u32 %da, %t;\n{STEP} // here\n{COMMIT}\n{WAIT}"
    fault_of(body, "disagree about the descriptor of A")


def test_matrix_that_was_never_written() -> None:
    image = np.full(4096, 1, np.uint8)
    body = f"{FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}"
    text_start = descriptor(4096, 128, 256)
    with pytest.raises(PtxFault, match="out of bounds"):
        run(8, image, body, PLAIN, text_start)


# -- warpgroups -----------------------------------------------------------------------------------


def test_a_warp_that_goes_another_way() -> None:
    body = f"""
    setp.ge.u32 %p, %t, 96;
    @%p bra done;
    {FENCE} // here\n{STEP}\n{COMMIT}\n{WAIT}
done:
"""
    fault_of(body, "divergence: not all lanes of the warpgroup")


def test_a_thread_that_goes_another_way() -> None:
    body = f"{FENCE}\nsetp.ne.u32 %p, %t, 77;\n@%p {STEP} // here\n{COMMIT}\n{WAIT}"
    fault_of(body, "not all threads of the warpgroup")


def test_a_block_of_half_a_warpgroup() -> None:
    fault_of(f"{FENCE} // here\n{STEP}\n{COMMIT}\n{WAIT}", "divergence", threads=64)


def test_scale_that_differs_between_threads() -> None:
    body = f"setp.ne.u32 %on, %t, 77;\n{FENCE}\n{STEP} // here\n{COMMIT}\n{WAIT}"
    fault_of(body, "disagree about scale-d")
