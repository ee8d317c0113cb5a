"""A matrix product as Hopper's kernels are built: a thread copies tiles of A and B by tensor maps,
two warpgroups multiply them by wgmma, mbarriers count full tiles and empty stages."""

from __future__ import annotations

import numpy as np
from abqc.runtime.ptx import Device, Kernel, parse
from abqc.runtime.ptx.tensor_map import encode_tiled

ROWS, COLUMNS, DEPTH = 128, 32, 128  # of a tile, s8
STAGES = 2
A_BYTES, B_BYTES = ROWS * DEPTH, COLUMNS * DEPTH
_SUMS = ", ".join(f"%d{i}" for i in range(COLUMNS // 2))
_STEP = (
    f"wgmma.mma_async.sync.aligned.m64n{COLUMNS}k32.s32.s8.s8 {{{_SUMS}}}, %da, %db, %on;\n"
    "    add.u64 %da, %da, 2; add.u64 %db, %db, 2;"
)
_INIT = "\n    ".join(
    f"mbarrier.init.shared::cta.b64 [%bar+{16 * s}], 1;\n"
    f"    mbarrier.init.shared::cta.b64 [%bar+{16 * s + 8}], 2;"
    for s in range(STAGES)
)
_COPY = (
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[{to}], [{map}, {{%c0, %c1}}], [%bar];"
)
# Rows of 128 bytes in a swizzle of 128: 1024 bytes from 8 rows to the next.
_DESCRIPTOR = 1 << 62 | 1024 >> 4 << 32 | 1 << 16
NEXT = f"""
    add.u32 %stage, %stage, 1;
    setp.eq.u32 %p, %stage, {STAGES};
    @%p mov.u32 %stage, 0;
    @%p xor.b32 %phase, %phase, 1;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, %tiles;"""
WAIT_FOR_WGMMA = "wgmma.wait_group.sync.aligned 0;"
FREE = "@%p mbarrier.arrive.shared::cta.b64 _, [%bar+8];"

SOURCE = f"""
.version 8.6
.target sm_90a
.address_size 64
.visible .entry product(.param .align 64 .b8 map_a[128], .param .align 64 .b8 map_b[128],
    .param .u64 out, .param .u32 tiles)
.reqntid 384
.minnctapersm 1
{{
    .reg .pred %p, %on, %done, %leader;
    .reg .b32 %t, %x, %k, %tiles, %stage, %phase, %bar, %sa, %sb, %group, %c0, %c1, %row;
    .reg .b32 %d<{COLUMNS // 2}>;
    .reg .b64 %map_a, %map_b, %out, %wide, %da, %db, %a0, %b0;
    .shared .align 1024 .b8 tiles_a[{STAGES * A_BYTES}];
    .shared .align 1024 .b8 tiles_b[{STAGES * B_BYTES}];
    .shared .align 8 .b8 bars[{16 * STAGES}];
    mov.b64 %map_a, map_a;
    cvta.param.u64 %map_a, %map_a;
    mov.b64 %map_b, map_b;
    cvta.param.u64 %map_b, %map_b;
    ld.param.u64 %out, [out];
    ld.param.u32 %tiles, [tiles];
    mov.u32 %t, %tid.x;
    setp.ne.u32 %p, %t, 0;
    @%p bra ready;
    mov.u32 %bar, bars;
    {_INIT}
    fence.mbarrier_init.release.cluster;
ready:
    bar.sync 0;
    mov.u32 %k, 0;
    mov.u32 %stage, 0;
    mov.u32 %phase, 0;
    setp.ge.u32 %p, %t, 128;
    @%p bra consumer;

    setmaxnreg.dec.sync.aligned.u32 40;
    setp.ge.u32 %p, %t, 32;
    @%p bra end;
    elect.sync %x|%leader, -1;
    @!%leader bra end;
produce:
    mov.u32 %bar, bars;
    mad.lo.u32 %bar, %stage, 16, %bar;
    xor.b32 %x, %phase, 1;
empty:
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar+8], %x;
    @!%done bra empty;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {A_BYTES + B_BYTES};
    mov.u32 %sa, tiles_a;
    mad.lo.u32 %sa, %stage, {A_BYTES}, %sa;
    mov.u32 %sb, tiles_b;
    mad.lo.u32 %sb, %stage, {B_BYTES}, %sb;
    mul.lo.u32 %c0, %k, {DEPTH};
    mov.u32 %c1, %ctaid.x;
    mul.lo.u32 %c1, %c1, {ROWS};
    {_COPY.format(to="%sa", map="%map_a")}
    mov.u32 %c1, 0;
    {_COPY.format(to="%sb", map="%map_b")}
    {NEXT}
    @%p bra produce;
    bra end;

consumer:
    setmaxnreg.inc.sync.aligned.u32 232;
    setp.eq.u32 %on, %t, %t;
    sub.u32 %row, %t, 128;
    shr.u32 %group, %row, 7;
    {" ".join(f"mov.b32 %d{i}, 0;" for i in range(COLUMNS // 2))}
    mov.u32 %x, tiles_a;
    mad.lo.u32 %x, %group, {64 * DEPTH}, %x;
    shr.u32 %x, %x, 4;
    cvt.u64.u32 %a0, %x;
    or.b64 %a0, %a0, {_DESCRIPTOR};
    mov.u32 %x, tiles_b;
    shr.u32 %x, %x, 4;
    cvt.u64.u32 %b0, %x;
    or.b64 %b0, %b0, {_DESCRIPTOR};
consume:
    mov.u32 %bar, bars;
    mad.lo.u32 %bar, %stage, 16, %bar;
full:
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], %phase;
    @!%done bra full;
    mul.wide.u32 %wide, %stage, {A_BYTES >> 4};
    add.u64 %da, %a0, %wide;
    mul.wide.u32 %wide, %stage, {B_BYTES >> 4};
    add.u64 %db, %b0, %wide;
    wgmma.fence.sync.aligned;
    {(chr(10) + "    ").join([_STEP] * (DEPTH // 32))}
    wgmma.commit_group.sync.aligned;
    {WAIT_FOR_WGMMA}
    and.b32 %x, %t, 127;
    setp.eq.u32 %p, %x, 0;
    {FREE}
    {NEXT}
    @%p bra consume;
    mov.u32 %x, %ctaid.x;
    mad.lo.u32 %row, %x, 256, %row;
    mul.wide.u32 %wide, %row, {2 * COLUMNS};
    add.u64 %out, %out, %wide;
    {" ".join(f"st.global.b32 [%out+{4 * i}], %d{i};" for i in range(COLUMNS // 2))}
end:
    ret;
}}
"""


def kernel_of(text: str = SOURCE) -> Kernel:
    return parse(text).kernels["product"]


def run(a: np.ndarray, b: np.ndarray, kernel: Kernel | None = None, **options) -> np.ndarray:
    """A times the transposed B, s32 [m, n], of s8 [m, k] and [n, k]; n is at most `COLUMNS`."""
    (m, k), n = a.shape, len(b)
    blocks, tiles = -(-m // ROWS), -(-k // DEPTH)
    device = Device((9, 0), 1 << 24)
    at_a, at_b = device.allocate(a.nbytes), device.allocate(b.nbytes)
    words = blocks * 256 * COLUMNS // 2
    out = device.allocate(4 * words)
    device.write(at_a, a)
    device.write(at_b, b)
    maps = [
        encode_tiled(0, address, (k, rows), (k,), (DEPTH, box), (1, 1), swizzle=3)
        for address, rows, box in ((at_a, m, ROWS), (at_b, n, COLUMNS))
    ]
    device.launch(
        kernel or kernel_of(), (blocks, 1, 1), (384, 1, 1), [*maps, out, tiles], **options
    )
    parts = device.read(out, 4 * words).view(np.int32).reshape(-1, 4, 8, 4, COLUMNS // 8, 2, 2)
    # group, warp, row, pair, columns by 8, low, parity
    return parts.transpose(0, 1, 5, 2, 4, 3, 6).reshape(-1, COLUMNS)[:m, :n]
