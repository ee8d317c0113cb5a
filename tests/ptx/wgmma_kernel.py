"""A kernel around one or several `wgmma`: shared memory comes from a buffer, D goes to another."""

from __future__ import annotations

import numpy as np
from abqc.runtime.ptx import Device, run_kernel

TEMPLATE = """
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 image, .param .u64 fragments, .param .u64 out)
{{
    .reg .pred %p, %on, %off;
    .reg .b32 %t, %i, %x, %y, %s, %a<4>, %d<{count}>;
    .reg .f32 %f<4>;
    .reg .b64 %image, %fragments, %out, %wide, %da, %db, %base;
    .shared .align 1024 .b8 tile[{bytes}];
    ld.param.u64 %image, [image];
    ld.param.u64 %fragments, [fragments];
    ld.param.u64 %out, [out];
    mov.u32 %t, %tid.x;
    shl.b32 %i, %t, 4;
    mov.u32 %s, tile;
fill:
    setp.ge.u32 %p, %i, {bytes};
    @%p bra filled;
    cvt.u64.u32 %wide, %i;
    add.u64 %wide, %image, %wide;
    ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%wide];
    add.u32 %y, %s, %i;
    st.shared.v4.b32 [%y], {{%a0, %a1, %a2, %a3}};
    add.u32 %i, %i, {stride};
    bra fill;
filled:
    {fence_proxy}
    bar.sync 0;
    shl.b32 %i, %t, 4;
    cvt.u64.u32 %wide, %i;
    add.u64 %wide, %fragments, %wide;
    ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%wide];
    mov.u64 %da, {a_descriptor};
    mov.u64 %db, {b_descriptor};
    setp.eq.u32 %on, %t, %t;
    setp.ne.u32 %off, %t, %t;
    {begin}
{body}
    mul.wide.u32 %wide, %t, {thread_bytes};
    add.u64 %out, %out, %wide;
    {end}
    ret;
}}
"""

BODY = """
    wgmma.fence.sync.aligned;
    {wgmma}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
"""


def descriptor(
    start: int, leading: int, stride: int, swizzle: int = 0, base_offset: int = 0
) -> int:
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return (
        start >> 4
        | (leading >> 4) << 16
        | (stride >> 4) << 32
        | base_offset << 49
        | mode << 62
    )  # fmt: skip


def instruction(n: int, k: int, types: str, a: str = "%da", rest: str = "") -> str:
    sums = ", ".join(f"%d{i}" for i in range(n // 2))
    return f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{types} {{{sums}}}, {a}, %db, %on{rest};"


def source(
    n: int,
    image: np.ndarray,
    body: str,
    a_descriptor: int,
    b_descriptor: int,
    *,
    threads: int = 128,
    start: int = 0,
    fence_proxy: str = "fence.proxy.async;",
) -> str:
    count = n // 2
    return TEMPLATE.format(
        count=max(count, 4),
        bytes=image.nbytes,
        stride=16 * threads,
        a_descriptor=a_descriptor,
        b_descriptor=b_descriptor,
        thread_bytes=4 * count,
        fence_proxy=fence_proxy,
        body=body,
        begin="\n    ".join(f"mov.b32 %d{i}, {start};" for i in range(count)),
        end="\n    ".join(f"st.global.b32 [%out + {4 * i}], %d{i};" for i in range(count)),
    )


def run(
    n: int,
    image: np.ndarray,
    body: str,
    a_descriptor: int,
    b_descriptor: int,
    fragments: np.ndarray | None = None,
    *,
    threads: int = 128,
    device: Device | None = None,
    **options,
) -> np.ndarray:
    """D as uint32 [warpgroups, 64, n]."""
    text = source(n, image, body, a_descriptor, b_descriptor, threads=threads, **options)
    if fragments is None:
        fragments = np.zeros((threads, 4), np.uint32)
    out = np.zeros(threads * n // 2, np.uint32)
    *_, words = run_kernel(text, "k", 1, threads, [image, fragments, out], device=device)
    parts = words.reshape(-1, 4, 8, 4, n // 8, 2, 2)  # group, warp, row, pair, column, low, parity
    return parts.transpose(0, 1, 5, 2, 4, 3, 6).reshape(-1, 64, n)
