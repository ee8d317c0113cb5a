"""mbarriers of the PTX machine: phases, states, counts, and what they order."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault, run_kernel

KERNEL = """
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 input, .param .u64 out)
.reqntid 64
{
    .reg .pred %p, %q, %done, %leader;
    .reg .b32 %t, %x, %y, %z, %s, %m;
    .reg .b64 %input, %out, %wide, %state, %far;
    .shared .align 16 .b8 s[1024];
    .shared .align 8 .b8 bars[16];
    ld.param.u64 %input, [input];
    ld.param.u64 %out, [out];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %wide, %t, 4;
    add.u64 %out, %out, %wide;
    mov.u32 %m, bars;
    mov.u32 %s, s;
    mad.lo.u32 %s, %t, 16, %s;
    mov.u32 %x, 0;
    setp.eq.u32 %leader, %t, 0;
    @%leader mbarrier.init.shared::cta.b64 [%m], COUNT;
    bar.sync 0;
    BODY
    st.global.b32 [%out], %x;
    ret;
}
"""
THREADS = np.arange(64)
WAIT = """
AGAIN:
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%m], PARITY, 1000;
    @!%done bra AGAIN;
"""


def run(body: str, count: int = 64, input: np.ndarray | None = None) -> np.ndarray:
    """%x of every thread."""
    text = KERNEL.replace("BODY", body).replace("COUNT", str(count))
    if input is None:
        input = np.zeros(256, np.uint32)
    return run_kernel(text, "k", 1, 64, [input, np.zeros(64, np.uint32)])[1]


def test_a_state_tells_the_phase() -> None:
    """Before all are there a test of the state fails, afterwards it holds; as arrivals come, fewer
    are pending."""
    found = run("""
    setp.ge.u32 %p, %t, 32;
    @%p bra upper;
    mbarrier.arrive.shared::cta.b64 %state, [%m];
    mbarrier.test_wait.shared::cta.b64 %done, [%m], %state;
    selp.u32 %x, 1, 0, %done;
    mbarrier.pending_count.b64 %y, %state;
    mad.lo.u32 %x, %y, 10, %x;
    bra end;
upper:
    mbarrier.arrive.release.cta.shared::cta.b64 %state, [%m], 1;
end:
    mbarrier.try_wait.acquire.cta.shared::cta.b64 %done, [%m], %state;
    @!%done bra end;
    add.u32 %x, %x, 1000;
    """)
    assert (found[:32] == 1000 + 10 * (64 - THREADS[:32])).all()
    assert (found[32:] == 1000).all()


def turn(parity: int, offset: int = 0) -> str:
    """Threads exchange numbers through shared memory, by an mbarrier instead of a barrier."""
    return f"""
    {{
    st.shared.b32 [%s+{offset}], %t;
    mbarrier.arrive.shared::cta.b64 _, [%m];
    {WAIT.replace("PARITY", str(parity))}
    xor.b32 %y, %t, 33;
    mov.u32 %z, s;
    mad.lo.u32 %y, %y, 16, %z;
    ld.shared.b32 %z, [%y+{offset}];
    add.u32 %x, %x, %z;
    }}
    """


def test_phases_order_what_threads_write() -> None:
    assert (run(turn(0) + turn(1, offset=4) + turn(0)) == 3 * (THREADS ^ 33)).all()


def test_nothing_orders_reads_before_the_next_phase() -> None:
    with pytest.raises(PtxFault, match="race in shared memory: this thread writes what"):
        run(turn(0) + turn(1))


def test_counts_of_arrivals() -> None:
    """One thread arrives for many; threads that drop out are not expected any more."""
    body = f"""
    @%leader mbarrier.arrive.shared::cta.b64 %state, [%m], 3;
    @%leader mbarrier.arrive_drop.shared::cta.b64 %state, [%m];
    {{ {WAIT.replace("PARITY", "0")} }}
    bar.sync 0;
    @%leader mbarrier.arrive.noComplete.shared::cta.b64 %state, [%m], 2;
    @%leader mbarrier.arrive.shared::cta.b64 %state, [%m];
    {{ {WAIT.replace("PARITY", "1")} }}
    mov.u32 %x, 7;
    """
    assert (run(body, count=4) == 7).all()


def test_transactions_by_hand() -> None:
    body = f"""
    @%leader mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%m], 100;
    @%leader mbarrier.arrive.shared::cta.b64 %state, [%m];
    mbarrier.test_wait.parity.shared::cta.b64 %done, [%m], 0;
    selp.u32 %x, 1, 0, %done;
    bar.sync 0;
    @%leader mbarrier.complete_tx.shared::cta.b64 [%m], 100;
    {WAIT.replace("PARITY", "0")}
    add.u32 %x, %x, 10;
    """
    assert (run(body, count=1) == 10).all()


@pytest.mark.parametrize("remote", [True, False])
def test_other_addresses(remote: bool) -> None:
    """Of the cluster's only block, and generic ones."""
    if remote:
        arrive = """
        mapa.shared::cluster.u32 %y, %m, 0;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%y];
        """
    else:
        arrive = """
        cvt.u64.u32 %far, %m;
        cvta.shared.u64 %far, %far;
        mbarrier.arrive.b64 %state, [%far];
        """
    assert (run(f"{arrive}\n{WAIT.replace('PARITY', '0')}\nmov.u32 %x, 5;") == 5).all()


COPY = """
    mul.wide.u32 %wide, %t, 16;
    add.u64 %input, %input, %wide;
    cp.async.cg.shared.global [%s], [%input], 16;
"""
READ = """
    xor.b32 %y, %t, 5;
    mov.u32 %z, s;
    mad.lo.u32 %y, %y, 16, %z;
    ld.shared.b32 %x, [%y+4];
"""


@pytest.mark.parametrize(("kind", "count"), [(".noinc", 64), ("", 1)])
def test_arrivals_of_copies(kind: str, count: int) -> None:
    """`cp.async.mbarrier.arrive` arrives for a thread when its copies are there."""
    data = np.arange(256, dtype=np.uint32)
    arrive = f"cp.async.mbarrier.arrive{kind}.shared::cta.b64 [%m];"
    last = "@%leader mbarrier.arrive.shared::cta.b64 %state, [%m];" if not kind else ""
    wait = WAIT.replace("PARITY", "0")
    found = run(f"{COPY}{arrive}\nbar.warp.sync -1;\n{last}{wait}{READ}", count, data)
    assert (found == 4 * (THREADS ^ 5) + 1).all()
    with pytest.raises(PtxFault, match="still copying there"):
        run(f"{COPY}{READ}", count, data)


def test_relaxed_arrivals_order_nothing() -> None:
    body = f"""
    st.shared.b32 [%s], %t;
    mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%m];
    {WAIT.replace("PARITY", "0")}
    {READ.replace("%y+4", "%y")}
    """
    with pytest.raises(PtxFault, match="race in shared memory"):
        run(body)
    assert (run(body.replace(".relaxed.cta", "")) == (THREADS ^ 5)).all()
