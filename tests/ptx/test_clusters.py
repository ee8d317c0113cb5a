"""Clusters of one block: their barrier, their addresses, their registers."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault, run_kernel

KERNEL = """
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out)
BOUNDS
{
    .reg .pred %p;
    .reg .b32 %t, %x, %y, %s;
    .reg .b64 %out, %wide, %far;
    .shared .align 16 .b8 s[512];
    ld.param.u64 %out, [out];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %wide, %t, 4;
    add.u64 %out, %out, %wide;
    mov.u32 %s, s;
    mad.lo.u32 %s, %t, 4, %s;
    mov.u32 %x, 0;
    BODY
    st.global.b32 [%out], %x;
    ret;
}
"""
ARRIVE, WAIT = "barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;"
SWAP = f"""
    st.shared.b32 [%s], %t;
    {ARRIVE}
    {WAIT}
    mov.u32 %y, s;
    sub.u32 %x, 127, %t;
    mad.lo.u32 %y, %x, 4, %y;
    ld.shared.b32 %x, [%y];
"""
THREADS = np.arange(128)


def run(body: str, bounds: str = "") -> np.ndarray:
    text = KERNEL.replace("BODY", body).replace("BOUNDS", bounds)
    return run_kernel(text, "k", 2, 128, [np.zeros(128, np.uint32)])[0]


def test_the_barrier_orders() -> None:
    assert (run(SWAP) == 127 - THREADS).all()


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (SWAP.replace(ARRIVE, ""), "without barrier.cluster.arrive"),
        (SWAP.replace(ARRIVE, 2 * ARRIVE), "again before the wait"),
        (SWAP.replace(WAIT, ""), "race in shared memory"),
        ("mapa.shared::cluster.u32 %y, %s, 1;", "does not have"),
    ],
)
def test_planted_fault(body: str, match: str) -> None:
    with pytest.raises(PtxFault, match=match):
        run(body)


def test_addresses_of_the_only_block() -> None:
    body = """
    st.shared.b32 [%s], %t;
    mapa.shared::cluster.u32 %y, %s, 0;
    ld.shared::cluster.b32 %x, [%y];
    mov.u32 %y, %cluster_nctarank;
    add.u32 %x, %x, %y;
    mov.u32 %y, %cluster_ctarank;
    add.u32 %x, %x, %y;
    """
    assert (run(body, ".explicitcluster .reqnctapercluster 1, 1, 1") == THREADS + 1).all()


def test_larger_clusters_are_refused() -> None:
    with pytest.raises(PtxFault, match="clusters of"):
        run("", ".reqnctapercluster 2, 1, 1")
