"""Launches, control flow, barriers and special registers."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import Device, PtxFault, PtxSyntaxError, parse, run_kernel
from abqc.runtime.ptx.order import weak_topological_order

HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"
KERNEL = """
.visible .entry k(.param .u64 output, .param .u32 n)
{
    .reg .pred %p<8>;
    .reg .b32 %r<32>;
    .reg .b32 %i, %t, %n, %v;
    .reg .b64 %l<8>;
    .reg .b64 %o;
    .shared .align 16 .b8 s[4096];
    mov.u32 %t, %tid.x;
    mov.u32 %r31, %ctaid.x;
    mov.u32 %r30, %ntid.x;
    mad.lo.u32 %i, %r31, %r30, %t;
    ld.param.u64 %o, [output];
    mad.wide.u32 %o, %i, 4, %o;
    ld.param.u32 %n, [n];
    mov.u32 %v, 0;
    BODY
    st.global.u32 [%o], %v;
    ret;
}
"""


def run(body: str, threads: int = 96, grid: int = 5, n: int = 7, before: str = "", **options):
    """The values of %v, by thread."""
    text = HEADER + before + KERNEL.replace("BODY", body)
    output = np.zeros(threads * grid, "u4")
    return run_kernel(text, "k", grid, threads, [output, n], device=Device(**options))[0]


I = np.arange(480)  # noqa: E741
T = I % 96


@pytest.mark.parametrize("lanes", [1, 200, 1 << 20])
def test_batches_of_any_size(lanes):
    assert (run("add.u32 %v, %i, %n;", batch_lanes=lanes) == I + 7).all()


@pytest.mark.parametrize("threads", [1, 31, 33, 96])
def test_blocks_of_any_size(threads):
    assert (run("add.u32 %v, %i, 1;", threads=threads) == np.arange(5 * threads) + 1).all()


def test_loops_of_different_lengths():
    lines = """
    and.b32 %r1, %i, 15;
    LOOP:
    setp.eq.u32 %p0, %r1, 0;
    @%p0 bra DONE;
    add.u32 %v, %v, %r1;
    sub.u32 %r1, %r1, 1;
    bra.uni LOOP;
    DONE:
    """
    k = I % 16
    assert (run(lines) == k * (k + 1) // 2).all()


def test_lanes_meet_again():
    """After a loop of different lengths the warp votes as a whole."""
    lines = """
    and.b32 %r1, %t, 7;
    LOOP:
    sub.u32 %r1, %r1, 1;
    setp.gt.s32 %p0, %r1, 0;
    @%p0 bra LOOP;
    activemask.b32 %v;
    """
    assert (run(lines) == 0xFFFFFFFF).all()


def test_labels_belong_to_their_scope():
    """Inline assembly has the same ones again and again."""
    loop = """
    {
        .reg .pred %again;
        mov.u32 %r1, 0;
    AGAIN:
        add.u32 %v, %v, 1;
        add.u32 %r1, %r1, 1;
        setp.ge.u32 %again, %r1, STEPS;
        @%again bra DONE;
        bra AGAIN;
    DONE:
    }
    """
    assert (run(loop.replace("STEPS", "3") + loop.replace("STEPS", "%n")) == 10).all()


def test_a_label_that_stands_twice():
    with pytest.raises(PtxSyntaxError, match="AGAIN stands twice"):
        run("AGAIN:\nadd.u32 %v, %v, 1;\nAGAIN:\n")


def test_switches():
    lines = """
    rem.u32 %r1, %i, 3;
    $targets: .branchtargets ZERO, ONE, TWO;
    brx.idx %r1, $targets;
    TWO: mov.u32 %v, 222; bra END;
    ONE: mov.u32 %v, 111; bra END;
    ZERO: mov.u32 %v, 5;
    END:
    """
    assert (run(lines) == np.choose(I % 3, [5, 111, 222])).all()
    with pytest.raises(PtxFault, match=r"brx\.idx 3 of 3 targets"):
        run(lines.replace("rem.u32 %r1, %i, 3", "and.b32 %r1, %i, 3"))


def test_threads_that_leave_early():
    lines = "setp.ge.u32 %p0, %i, 100; @%p0 exit; mov.u32 %v, 1; bar.sync 0;"
    assert (run(lines) == (I < 100)).all()


def test_guards():
    lines = "setp.lt.u32 %p0, %t, 10; @%p0 mov.u32 %v, 3; @!%p0 mov.u32 %v, 4;"
    assert (run(lines) == np.where(T < 10, 3, 4)).all()
    lines = "setp.lt.u32 %p0, %t, 200; @!%p0 mov.u32 %v, 3;"
    assert (run(lines) == 0).all()


FUNCTION = """
.func (.param .b32 result) twice(.param .b32 x)
{
    .reg .b32 %r<4>; .reg .pred %p;
    ld.param.u32 %r1, [x];
    setp.gt.u32 %p, %r1, 50;
    @%p bra BIG;
    add.u32 %r2, %r1, %r1;
    st.param.b32 [result], %r2;
    ret;
    BIG:
    st.param.b32 [result], %r1;
    ret;
}
"""


def test_calls():
    call = """
    { .param .b32 argument; .param .b32 returned;
      st.param.b32 [argument], %SOURCE;
      call.uni (returned), twice, (argument);
      ld.param.b32 %v, [returned]; }
    """
    lines = call.replace("SOURCE", "t") + call.replace("SOURCE", "v")
    once = np.where(T > 50, T, 2 * T)
    assert (run(lines, before=FUNCTION) == np.where(once > 50, once, 2 * once)).all()


def test_recursion_is_refused():
    recursive = ".func f() { call f, (); ret; }"
    with pytest.raises(Exception, match="recursion"):
        run("call f, ();", before=recursive)


def test_special_registers():
    text = (
        HEADER
        + """
    .entry k(.param .u64 out)
    {
        .reg .b32 %r<20>; .reg .b64 %l<4>;
        ld.param.u64 %l1, [out];
        mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z;
        mov.u32 %r4, %ctaid.x; mov.u32 %r5, %ctaid.y; mov.u32 %r6, %nctaid.x;
        mov.u32 %r7, %laneid; mov.u32 %r8, %warpid;
        mov.u32 %r9, %ntid.x; mov.u32 %r10, %ntid.y;
        mad.lo.u32 %r11, %r3, %r10, %r2;
        mad.lo.u32 %r11, %r11, %r9, %r1;
        mad.lo.u32 %r12, %r5, %r6, %r4;
        mad.lo.u32 %r12, %r12, 48, %r11;
        mad.wide.u32 %l1, %r12, 16, %l1;
        st.global.v4.u32 [%l1], {%r11, %r4, %r7, %r8};
        ret;
    }
    """
    )
    result = run_kernel(text, "k", (3, 2, 1), (4, 6, 2), [np.zeros((6, 48, 4), "u4")])[0]
    thread = np.arange(48)
    assert (result[..., 0] == thread).all()
    assert (result[..., 1] == np.array([0, 1, 2, 0, 1, 2])[:, None]).all()
    assert (result[..., 2] == thread % 32).all() and (result[..., 3] == thread // 32).all()


def test_clocks_go_on():
    assert (run("mov.u32 %r1, %clock; mov.u32 %r2, %clock; sub.u32 %v, %r2, %r1;") > 0).all()


def test_dynamic_shared_memory():
    text = (
        HEADER
        + ".extern .shared .align 16 .b8 dynamic[];"
        + KERNEL.replace(
            "BODY",
            """
        mov.u32 %r1, dynamic; mad.lo.u32 %r1, %t, 4, %r1;
        st.shared.u32 [%r1], %t; bar.sync 0; xor.b32 %r1, %r1, 4; ld.shared.u32 %v, [%r1];
        """,
        )
    )
    module, device = parse(text), Device()
    address = device.allocate(64 * 4)
    arguments = (module.kernels["k"], (1, 1, 1), (64, 1, 1), [address, 0])
    device.launch(*arguments, shared_bytes=256)
    assert (device.read(address, 256).view("u4") == np.arange(64) ^ 1).all()
    with pytest.raises(PtxFault, match="out of bounds"):
        device.launch(*arguments, shared_bytes=128)


# ---- barriers


def test_barriers_for_some_threads():
    """Warp 0 produces for warp 1; warp 2 has nothing to do with it."""
    lines = """
    shr.u32 %r1, %t, 5;
    mov.u32 %r2, s;
    and.b32 %r3, %t, 31;
    mad.lo.u32 %r2, %r3, 4, %r2;
    setp.eq.u32 %p0, %r1, 0;
    setp.eq.u32 %p1, %r1, 1;
    @%p0 bra PRODUCE;
    @%p1 bra CONSUME;
    bra END;
    PRODUCE:
    st.shared.u32 [%r2], %r3;
    barrier.arrive 3, 64;
    bra END;
    CONSUME:
    barrier.sync 3, 64;
    ld.shared.u32 %v, [%r2];
    END:
    """
    assert (run(lines) == np.where(T // 32 == 1, T % 32, 0)).all()


def test_reductions_of_barriers():
    lines = "setp.lt.u32 %p0, %t, 40; bar.red.popc.u32 %v, 0, %p0;"
    assert (run(lines) == 40).all()
    lines = "setp.lt.u32 %p0, %i, 96; bar.red.and.pred %p1, 0, %p0; selp.u32 %v, 1, 0, %p1;"
    assert (run(lines) == (I < 96)).all()
    lines = "setp.eq.u32 %p0, %i, 97; bar.red.or.pred %p1, 0, !%p0; selp.u32 %v, 1, 0, %p1;"
    assert (run(lines) == 1).all()


def test_a_barrier_that_never_completes():
    lines = "setp.lt.u32 %p0, %t, 32; @%p0 bra A; bar.sync 1; bra END; A: bar.sync 2; END:"
    with pytest.raises(PtxFault, match="never completes: 32 of 96 threads") as error:
        run(lines)
    assert error.value.text == "bar.sync 2;"


def test_divergence_at_an_instruction_for_the_warp():
    lines = (
        "setp.lt.u32 %p0, %t, 5; @%p0 bra A; shfl.sync.idx.b32 %v, %t, 0, 31, -1; A: bar.sync 0;"
    )
    with pytest.raises(PtxFault, match="divergence") as error:
        run(lines)
    assert "shfl" in error.value.text


def test_lanes_wait_for_each_other():
    """Both ways lead to the shuffle, one of them later."""
    lines = """
    setp.lt.u32 %p0, %t, 5;
    mov.u32 %r1, 0;
    @%p0 bra JOIN;
    LOOP: add.u32 %r1, %r1, 1; setp.lt.u32 %p1, %r1, 100; @%p1 bra LOOP;
    JOIN: shfl.sync.idx.b32 %v, %r1, 9, 31, -1;
    """
    assert (run(lines) == 100).all()


def test_spinning_on_another_thread():
    """Warp 0 waits, in a loop at an earlier line, for what warp 1 stores later."""
    lines = """
    mov.u32 %r2, s;
    st.shared.u32 [%r2], 0;
    bar.sync 0;
    setp.ge.u32 %p0, %t, 32;
    @%p0 bra STORE;
    SPIN: atom.shared.or.b32 %v, [%r2], 0;
    setp.eq.u32 %p1, %v, 0;
    @%p1 bra SPIN;
    bra END;
    STORE: atom.shared.exch.b32 %v, [%r2], 9;
    END:
    """
    assert (run(lines)[:32] == 9).all()


def test_endless_loops_end():
    with pytest.raises(PtxFault, match="no end"):
        run("LOOP: bra LOOP;", instruction_limit=1000)


def test_trap():
    with pytest.raises(PtxFault, match="trap") as error:
        run("setp.eq.u32 %p0, %i, 100; @%p0 trap;")
    assert error.value.block == (1, 0, 0) and error.value.thread == (4, 0, 0)


# ---- launches


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"block": (32, 1, 1)}, "reqntid"),
        ({"block": (2048, 1, 1)}, "at most"),
        ({"grid": (0, 1, 1)}, "empty launch"),
        ({"parameters": []}, "0 parameters, 1 expected"),
        ({"shared_bytes": 1 << 20}, "shared memory"),
    ],
)
def test_launches_that_cannot_be(launch, message):
    module = parse(HEADER + ".entry k(.param .u32 n) .reqntid 64, 1, 1 { ret; }")
    arguments = {"grid": (1, 1, 1), "block": (64, 1, 1), "parameters": [1]} | launch
    with pytest.raises(PtxFault, match=message):
        Device().launch(module.kernels["k"], **arguments)


def test_counters_are_told_of_everything():
    class Counters:
        def __init__(self):
            self.launches, self.lines = [], []

        def begin(self, kernel, grid, block):
            self.launches.append((kernel.name, grid, block))

        def record(self, instruction, executing, active, accesses):
            self.lines.append((instruction.opcode, len(active), [a.space for a in accesses]))

    counters = Counters()
    text = HEADER + KERNEL.replace("BODY", "setp.lt.u32 %p0, %t, 3; @%p0 add.u32 %v, %v, 1;")
    run_kernel(text, "k", 2, 64, [np.zeros(128, "u4"), 1], counters=counters)
    assert counters.launches == [("k", (2, 1, 1), (64, 1, 1))]
    assert ("add", 6, []) in counters.lines
    assert ("st", 128, ["global"]) in counters.lines
    assert counters.lines[-1][:2] == ("ret", 128)


# ---- order of blocks


@pytest.mark.parametrize(
    ("following", "order"),
    [
        ([[1, 2], [3], [3], []], [0, 1, 2, 3]),
        ([[2, 1], [3], [3], []], [0, 1, 2, 3]),
        ([[3, 1], [2], [1, 3], []], [0, 1, 2, 3]),  # a loop before what follows it
        ([[2], [], [3, 1], [2]], [0, 2, 3, 1]),  # the exit stands before the body in the text
        ([[1], [2], [3, 1], [4, 1], []], [0, 1, 2, 3, 4]),
        ([[1], [3, 4], [], [1], [2]], [0, 1, 3, 4, 2]),
        ([[0, 1], []], [0, 1]),
        ([[2], [9], [3], []] + [[]] * 6, [0, 2, 3]),  # what cannot be reached is left out
    ],
)
def test_weak_topological_order(following, order):
    assert weak_topological_order(following) == order


# ---- storage of registers


def test_registers_share_storage():
    chain = "".join(f"add.u32 %r{k + 1}, %r{k}, 1;" for k in range(20))
    text = HEADER + KERNEL.replace("BODY", f"mov.u32 %r0, %i; {chain} mov.u32 %v, %r20;")
    program = parse(text).kernels["k"].program
    assert len(set(program.storage)) < len(program.slots) - 15


def test_values_live_through_loops_and_guards():
    """%r1 is written before a loop that uses many registers, and partly under a guard."""
    lines = """
    add.u32 %r1, %i, 1000;
    setp.lt.u32 %p0, %t, 9;
    @%p0 mov.u32 %r1, 5;
    mov.u32 %r2, 0;
    LOOP:
    add.u32 %r3, %r2, 1; add.u32 %r4, %r3, 1; sub.u32 %r5, %r4, 1; mov.u32 %r2, %r5;
    rem.u32 %r6, %i, 7;
    setp.lt.u32 %p1, %r2, %r6;
    @%p1 bra LOOP;
    add.u32 %v, %r1, %r2;
    """
    expected = np.where(T < 9, 5, I + 1000) + np.maximum(I % 7, 1)
    assert (run(lines) == expected).all()


def test_registers_of_code_that_cannot_be_reached():
    lines = "bra END; mov.u64 %l5, 3; mov.u32 %r9, 1; add.u32 %v, %r9, %r9; END:"
    assert (run(lines) == 0).all()
