"""Hand-written PTX that repeats one `wgmma.mma_async`, both operands in shared memory.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate": a step along K is 32 bytes of
every row, for all types. Operands are K-major without a swizzle: core matrices of 8 rows x 16 bytes
are contiguous, the two of a step 128 bytes apart (leading byte offset), those of the next 8 rows
256 bytes (stride byte offset).

    (out, turns i32, seed i32): thread t leaves its N / 2 accumulators at out + 4 * t * N / 2
"""

from __future__ import annotations

from dataclasses import dataclass

from gpukit.kit import RateJob
from gpukit.operands import GOLDEN, MIX

COLUMNS = (8, 16, 32, 64, 128, 256)
WARPGROUPS = 2
THREADS = 128 * WARPGROUPS
ROWS, ROW_BYTES = 64, 32
LEADING, STRIDE = 128, 256  # bytes


@dataclass(frozen=True)
class Form:
    """K of one instruction, its types, the immediate operands behind scale-d."""

    k: int
    types: str
    accumulator: str
    immediates: str


FORMS = {
    "b1": Form(256, "s32.b1.b1.and.popc", "b32", ""),
    "s8": Form(32, "s32.s8.s8", "b32", ""),
    "f16": Form(16, "f32.f16.f16", "f32", ", 1, 1, 0, 0"),
}


def wgmma_rates(turns: int) -> list[tuple[str, RateJob]]:
    """PTX and job for every type and N."""
    made = []
    for family, form in FORMS.items():
        for n in COLUMNS:
            name = f"rate_wgmma_{family}_n{n}"
            # A batch is waited for as a whole: many short instructions, or fewer long ones.
            steps = max(16, 1024 // n)
            blocks = 1 if n == 256 else 2  # by their registers
            job = RateJob(
                *(f"wgmma {family}.m{ROWS}n{n}k{form.k}", family, name, (ROWS, n, form.k)),
                *(steps * WARPGROUPS, max(1, 512 * turns // (steps * n)), blocks),
            )
            made.append((source(name, form, n, steps), job))
    return made


def source(name: str, form: Form, n: int, steps: int) -> str:
    """One kernel as a PTX module."""
    count = n // 2
    sums = ", ".join(f"%d{i}" for i in range(count))
    step = (
        f"wgmma.mma_async.sync.aligned.m{ROWS}n{n}k{form.k}.{form.types}\n"
        f"        {{{sums}}}, %a, %b, %on{form.immediates};"
    )
    zero = "0f00000000" if form.accumulator == "f32" else "0"
    begin = "\n    ".join(f"mov.{form.accumulator} %d{i}, {zero};" for i in range(count))
    end = "\n    ".join(
        f"st.global.{form.accumulator} [%out + {4 * i}], %d{i};" for i in range(count)
    )
    exponents = (
        "and.b32 %x, %x, 0x83ff83ff;\n    or.b32 %x, %x, 0x3c003c00;"
        if form.accumulator == "f32"
        else ""
    )
    words = (ROWS + n) * ROW_BYTES // 4
    batch = "\n    ".join([step] * steps)
    return f"""\
.version 8.0
.target sm_90a
.address_size 64

.visible .entry {name}(.param .u64 out, .param .u32 turns, .param .u32 seed)
.reqntid {THREADS}
{{
    .reg .pred %p, %on;
    .reg .b32 %t, %i, %x, %y, %s, %n;
    .reg .b64 %out, %wide, %a, %b;
    .reg .{form.accumulator} %d<{count}>;
    .shared .align 128 .b8 tile[{4 * words}];

    ld.param.u64 %out, [out];
    ld.param.u32 %n, [turns];
    ld.param.u32 %s, [seed];
    cvta.to.global.u64 %out, %out;
    mov.u32 %t, %tid.x;

    // Operands: word i is the hash of i + seed.
    mov.u32 %i, %t;
fill:
    add.u32 %x, %i, %s;
    mul.lo.u32 %x, %x, {GOLDEN};
    shr.u32 %y, %x, 15;
    xor.b32 %x, %x, %y;
    mul.lo.u32 %x, %x, {MIX};
    shr.u32 %y, %x, 13;
    xor.b32 %x, %x, %y;
    {exponents}
    mov.u32 %y, tile;
    mad.lo.u32 %y, %i, 4, %y;
    st.shared.b32 [%y], %x;
    add.u32 %i, %i, {THREADS};
    setp.lt.u32 %p, %i, {words};
    @%p bra fill;
    fence.proxy.async;
    bar.sync 0;

    // Descriptors: bits 0-13 address, 16-29 leading, 32-45 stride, all in units of 16 bytes;
    // 49-51 base offset 0, 62-63 no swizzle.
    mov.u32 %y, tile;
    and.b32 %y, %y, 0x3ffff;
    shr.u32 %y, %y, 4;
    cvt.u64.u32 %a, %y;
    or.b64 %a, %a, {(LEADING >> 4) << 16 | (STRIDE >> 4) << 32};
    add.u64 %b, %a, {ROWS * ROW_BYTES >> 4};
    setp.eq.u32 %on, %t, %t;
    {begin}

turn:
    wgmma.fence.sync.aligned;
    {batch}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    sub.u32 %n, %n, 1;
    setp.ne.u32 %p, %n, 0;
    @%p bra turn;

    mul.wide.u32 %wide, %t, {4 * count};
    add.u64 %out, %out, %wide;
    mov.u32 %x, %ctaid.x;
    mul.wide.u32 %wide, %x, {4 * count * THREADS};
    add.u64 %out, %out, %wide;
    {end}
    ret;
}}
"""
