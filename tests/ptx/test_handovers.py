"""What blocks hand to each other in global memory: by release and acquire, or it is a fault."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault, run_kernel

# Block 0 writes a word with each of its threads, and one thread says so; block 1 waits for that,
# and reads. All threads of the block meet before the flag is set, and after it is read.
SOURCE = """
.version 8.4
.target sm_90
.address_size 64
.visible .entry hand_over(.param .u64 data, .param .u64 flag, .param .u64 out)
{{
    .reg .b64 %rd<8>;
    .reg .b32 %r<8>;
    .reg .pred %p<4>;
    ld.param.u64 %rd1, [data];
    ld.param.u64 %rd2, [flag];
    ld.param.u64 %rd3, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd4, %r1, 4;
    add.s64 %rd5, %rd1, %rd4;
    setp.eq.u32 %p1, %r2, 1;
    @%p1 bra READ;
    add.u32 %r3, %r1, 7;
    st.global.u32 [%rd5], %r3;
    {meet}
    setp.ne.u32 %p2, %r1, 0;
    @%p2 bra END;
    {give}
    bra.uni END;
READ:
    setp.ne.u32 %p2, %r1, 0;
    @%p2 bra TOGETHER;
AGAIN:
    {take}
    setp.eq.u32 %p3, %r4, 0;
    @%p3 bra AGAIN;
TOGETHER:
    {meet}
    ld.global.u32 %r5, [%rd5];
    add.s64 %rd6, %rd3, %rd4;
    st.global.u32 [%rd6], %r5;
END:
    ret;
}}
"""
GIVE, TAKE, MEET = (
    "st.release.gpu.global.u32 [%rd2], 1;",
    "ld.acquire.gpu.global.u32 %r4, [%rd2];",
    "bar.sync 0;",
)


def run(give: str = GIVE, take: str = TAKE, meet: str = MEET) -> np.ndarray:
    text = SOURCE.format(give=give, take=take, meet=meet)
    data, out = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    return run_kernel(text, "hand_over", 2, 64, [data, np.zeros(1, np.uint32), out])[2]


@pytest.mark.parametrize("give", [GIVE, "red.release.gpu.global.add.u32 [%rd2], 1;"])
@pytest.mark.parametrize("take", [TAKE, "atom.acquire.gpu.global.or.b32 %r4, [%rd2], 0;"])
def test_released_and_acquired(give: str, take: str) -> None:
    assert (run(give, take) == np.arange(64) + 7).all()


@pytest.mark.parametrize(
    "missing",
    [
        {"give": "st.relaxed.gpu.global.u32 [%rd2], 1;"},
        {"give": "st.release.cta.global.u32 [%rd2], 1;"},
        {"take": "ld.relaxed.gpu.global.u32 %r4, [%rd2];"},
        {"take": "ld.volatile.global.u32 %r4, [%rd2];"},
        {"meet": ""},
    ],
)
def test_what_is_not_ordered_races(missing: dict[str, str]) -> None:
    with pytest.raises(PtxFault, match="race in global memory: this thread reads what thread"):
        run(**missing)


def test_a_flag_that_nobody_writes() -> None:
    with pytest.raises(PtxFault, match=r"nothing can go on.*others should have written.*block 1"):
        run(give="")


def test_fences_are_not_followed() -> None:
    give = "fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%rd2], 1;"
    assert (run(give) == np.arange(64) + 7).all()
