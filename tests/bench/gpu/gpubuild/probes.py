"""Hand-written PTX that asks a GPU for what the cost model assumes: clocks, latencies, empty nodes.

    probe_empty    (out)               does nothing
    probe_clock    (out, turns i32)    a thread: cycles and nanoseconds of so many dependent adds
    probe_latency  (out, memory, mask i32, turns i32, spins i32)

In `probe_latency` the first thread of block 0 follows a chain of `turns` loads, each of a line of
128 bytes that the one before names (`memory` has mask + 1 of them), and leaves their cycles. All
other blocks read the memory from end to end, `spins` times 16 bytes a thread.
"""

from __future__ import annotations

from abqc.codegen.gpu.arch import GpuArch
from gpukit.probes import PROBE_THREADS

_EMPTY = """\
.visible .entry probe_empty(.param .u64 out)
{
    ret;
}
"""

_CLOCK = """\
.visible .entry probe_clock(.param .u64 out, .param .u32 turns)
{
    .reg .pred %p;
    .reg .b32 %n, %x;
    .reg .b64 %out, %c, %d, %s, %t;
    ld.param.u64 %out, [out];
    ld.param.u32 %n, [turns];
    cvta.to.global.u64 %out, %out;
    mov.u32 %x, %tid.x;
    mov.u64 %s, %globaltimer;
    mov.u64 %c, %clock64;
turn:
    add.u32 %x, %x, %n;
    sub.u32 %n, %n, 1;
    setp.ne.u32 %p, %n, 0;
    @%p bra turn;
    mov.u64 %d, %clock64;
    mov.u64 %t, %globaltimer;
    sub.u64 %d, %d, %c;
    sub.u64 %t, %t, %s;
    st.global.u64 [%out], %d;
    st.global.u64 [%out + 8], %t;
    st.global.u32 [%out + 16], %x;
    ret;
}
"""

_LATENCY = f"""\
.visible .entry probe_latency(
    .param .u64 out, .param .u64 memory, .param .u32 mask, .param .u32 turns, .param .u32 spins)
{{
    .reg .pred %p;
    .reg .b32 %n, %x, %y, %m, %b, %g, %v<4>;
    .reg .b64 %out, %base, %at, %c, %d, %all, %place, %step;
    ld.param.u64 %out, [out];
    ld.param.u64 %base, [memory];
    ld.param.u32 %m, [mask];
    cvta.to.global.u64 %out, %out;
    cvta.to.global.u64 %base, %base;
    mov.u32 %b, %ctaid.x;
    mov.u32 %x, %tid.x;
    setp.ne.u32 %p, %b, 0;
    @%p bra load;
    setp.ne.u32 %p, %x, 0;
    @%p bra done;

    ld.param.u32 %n, [turns];
    mov.u64 %c, %clock64;
chase:
    and.b32 %y, %x, %m;
    mul.wide.u32 %at, %y, 128;
    add.u64 %at, %base, %at;
    ld.global.cg.u32 %y, [%at];
    mad.lo.u32 %x, %x, 1664525, %y;
    add.u32 %x, %x, 1013904223;
    sub.u32 %n, %n, 1;
    setp.ne.u32 %p, %n, 0;
    @%p bra chase;
    mov.u64 %d, %clock64;
    sub.u64 %d, %d, %c;
    st.global.u64 [%out], %d;
    st.global.u32 [%out + 8], %x;
    bra done;

load:
    ld.param.u32 %n, [spins];
    mov.u32 %g, %nctaid.x;
    sub.u32 %g, %g, 1;
    sub.u32 %b, %b, 1;
    mul.lo.u32 %g, %g, {PROBE_THREADS};
    mad.lo.u32 %b, %b, {PROBE_THREADS}, %x;
    mul.wide.u32 %place, %b, 16;
    mul.wide.u32 %step, %g, 16;
    cvt.u64.u32 %all, %m;
    add.u64 %all, %all, 1;
    shl.b64 %all, %all, 7;
    mov.u32 %y, 0;
stream:
    setp.lt.u64 %p, %place, %all;
    @%p bra inside;
    sub.u64 %place, %place, %all;
inside:
    add.u64 %at, %base, %place;
    ld.global.cg.v4.u32 {{%v0, %v1, %v2, %v3}}, [%at];
    xor.b32 %y, %y, %v0;
    xor.b32 %y, %y, %v3;
    add.u64 %place, %place, %step;
    sub.u32 %n, %n, 1;
    setp.ne.u32 %p, %n, 0;
    @%p bra stream;
    mul.wide.u32 %at, %b, 4;
    add.u64 %at, %out, %at;
    st.global.u32 [%at + 16], %y;
done:
    ret;
}}
"""


def probes(arch: GpuArch) -> list[tuple[str, str, int]]:
    """Name, PTX and threads of each."""
    head = (
        f".version {arch.ptx_version // 10}.{arch.ptx_version % 10}\n"
        f".target {arch.name}\n.address_size 64\n\n"
    )
    return [
        ("probe_empty", head + _EMPTY, 32),
        ("probe_clock", head + _CLOCK, 1),
        ("probe_latency", head + _LATENCY, PROBE_THREADS),
    ]
