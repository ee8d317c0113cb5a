"""Instructions in which lanes of a warp work together, atomics, and moves of vectors."""

from __future__ import annotations

import numpy as np
import pytest
from one_instruction import apply, bits, same

LANE = np.arange(128, dtype="u4") % 32
BASE = np.arange(128, dtype="u4") // 32 * 32
VALUES = bits("u4", 128)


def shuffle(mode: str, offset: int, clamp: int) -> tuple[np.ndarray, np.ndarray]:
    """As the PTX ISA has it in pseudo code."""
    values, valid = [], []
    for thread in range(128):
        lane, base = thread % 32, thread // 32 * 32
        segment, limit = clamp >> 8 & 31, clamp & 31
        high = (lane & segment) | (limit & ~segment)
        low = lane & segment
        partner = {
            "up": lane - offset,
            "down": lane + offset,
            "bfly": lane ^ offset,
            "idx": low | (offset & ~segment & 31),
        }[mode]
        inside = partner >= high if mode == "up" else partner <= high
        values.append(VALUES[base + (partner if inside else lane)])
        valid.append(inside)
    return np.array(values, "u4"), np.array(valid, "u4")


@pytest.mark.parametrize(
    ("mode", "offset", "clamp"),
    [
        ("bfly", 1, 31),
        ("bfly", 16, 31),
        ("bfly", 3, 0x1C1F),
        ("up", 1, 0),
        ("up", 4, 0x1800),
        ("down", 1, 31),
        ("down", 7, 0x181F),
        ("idx", 0, 31),
        ("idx", 5, 0x181F),
        ("idx", 29, 15),
    ],
)
def test_shuffles(mode, offset, clamp):
    lines = f"shfl.sync.{mode}.b32 {{d}}|%p0, {{a}}, {offset}, {clamp}, -1; selp.u32 {{e}},1,0,%p0;"
    values, valid = apply(lines, VALUES, to="u4", results=2)
    expected, inside = shuffle(mode, offset, clamp)
    same(values, expected)
    same(valid, inside)


def test_votes():
    said = VALUES % 3 == 0
    word = np.array([sum(1 << k for k in range(32) if said[base + k]) for base in BASE], "u4")
    prefix = "rem.u32 %t0, {a}, 3; setp.eq.u32 %p0, %t0, 0;"
    same(apply(f"{prefix} vote.sync.ballot.b32 {{d}}, %p0, -1;", VALUES, to="u4"), word)
    for name, expected in {"any": word != 0, "all": word == 0xFFFFFFFF, "uni": word == 0}.items():
        lines = f"{prefix} vote.sync.{name}.pred %p1, %p0, -1; selp.u32 {{d}}, 1, 0, %p1;"
        same(apply(lines, VALUES, to="u4"), expected.astype("u4"))
    same(apply(f"{prefix} vote.sync.ballot.b32 {{d}}, !%p0, -1;", VALUES, to="u4"), ~word)


def test_votes_of_half_warps():
    lines = """
    and.b32 %t0, {a}, 16;
    setp.ne.u32 %p0, %t0, 0;
    selp.b32 %t1, 0xFFFF0000, 0x0000FFFF, %p0;
    @%p0 bra HIGH;
    vote.sync.ballot.b32 {d}, 1, %t1;
    bra END;
    HIGH: vote.sync.ballot.b32 {d}, !%p0, %t1;
    END:
    """
    same(apply(lines, LANE, to="u4"), np.where(LANE & 16, 0, 0xFFFF).astype("u4"))


@pytest.mark.parametrize("sign", "us")
def test_reductions(sign):
    type = "u4" if sign == "u" else "i4"
    rows = VALUES.view(type).reshape(-1, 32)
    for name, function in {"add": np.add, "min": np.minimum, "max": np.maximum}.items():
        expected = np.repeat(function.reduce(rows, axis=1, dtype=type), 32)
        same(
            apply(f"redux.sync.{name}.{sign}32 {{d}}, {{a}}, -1;", rows.ravel(), to=type), expected
        )
    expected = np.repeat(np.bitwise_xor.reduce(rows, axis=1), 32)
    same(apply("redux.sync.xor.b32 {d}, {a}, -1;", rows.ravel(), to=type), expected)


def test_matches():
    a = VALUES % 3
    same_lanes = [
        sum(1 << k for k in range(32) if a[b + k] == x) for b, x in zip(BASE, a, strict=True)
    ]
    expected = np.array(same_lanes, "u4")
    same(apply("match.any.sync.b32 {d}, {a}, -1;", a, to="u4"), expected)
    lines = "match.all.sync.b32 {d}|%p0, {a}, -1; selp.u32 {e}, 1, 0, %p0;"
    found, agreed = apply(lines, np.where(BASE == 32, 7, a).astype("u4"), to="u4", results=2)
    same(found, np.where(BASE == 32, 0xFFFFFFFF, 0).astype("u4"))
    same(agreed, (BASE == 32).astype("u4"))


def test_election_and_masks():
    lines = "elect.sync {d}|%p0, 0xFFFFFF00; selp.u32 {e}, 1, 0, %p0;"
    lines = f"setp.ge.u32 %p1, {{a}}, 8; @!%p1 bra END; {lines} END: "
    leader, chosen = apply(lines, LANE, to="u4", results=2)
    same(leader, np.where(LANE >= 8, 8, 0).astype("u4"))
    same(chosen, (LANE == 8).astype("u4"))
    for name, expected in {"lt": (1 << LANE) - 1, "eq": 1 << LANE}.items():
        same(apply(f"mov.u32 {{d}}, %lanemask_{name};", LANE, to="u4"), expected.astype("u4"))
    same(apply("activemask.b32 {d};", LANE, to="u4"), np.full(128, 0xFFFFFFFF, "u4"))


ATOMIC = """
mov.u32 %t0, shared_cells;
shl.b32 %t1, {a}, 2;
add.u32 %t0, %t0, %t1;
mov.u32 %t2, INITIAL;
setp.lt.u32 %p0, %j, 8;
shl.b32 %t3, %j, 2;
mov.u32 %t4, shared_cells;
add.u32 %t3, %t3, %t4;
@%p0 st.shared.u32 [%t3], %t2;
bar.sync 0;
atom.shared.OP %t5, [%t0], {b}MORE;
bar.sync 0;
mov.u32 {d}, %t5;
ld.shared.u32 {e}, [%t0];
"""


def atomic(op: str, values: np.ndarray, initial: int = 0, more: str = ""):
    lines = ".shared .align 4 .b8 shared_cells[32];" + ATOMIC
    lines = lines.replace("OP", op).replace("MORE", more).replace("INITIAL", str(initial))
    return apply(lines, LANE % 8, values, to="u4", results=2)


@pytest.mark.parametrize(
    ("op", "function", "initial"),
    [
        ("add.u32", lambda old, b: old + b & 0xFFFFFFFF, 5),
        ("min.u32", min, 1 << 31),
        ("max.u32", max, 7),
        ("xor.b32", lambda old, b: old ^ b, 9),
        ("exch.b32", lambda old, b: b, 3),
        ("inc.u32", lambda old, b: 0 if old >= b else old + 1, 0),
        ("dec.u32", lambda old, b: b if old == 0 or old > b else old - 1, 4),
    ],
)
def test_atomics_in_turn(op, function, initial):
    values = VALUES % 6 if op[:3] in ("inc", "dec") else VALUES
    cells, expected = [initial] * 8, []
    for lane, b in zip(LANE, values, strict=True):
        expected.append(cells[lane % 8])
        cells[lane % 8] = function(cells[lane % 8], int(b))
    old, final = atomic(op, values, initial)
    same(old, np.array(expected, "u4"))
    same(final, np.array(cells, "u4")[LANE % 8])


def test_compare_and_swap():
    old, final = atomic("cas.b32", np.zeros(128, "u4"), 0, ", 77")
    assert (old == 0).sum() == 8 and (old == 77).sum() == 120
    assert (final == 77).all()


def test_atomic_sum_of_floats():
    lines = ".shared .align 4 .b8 shared_cells[32];" + ATOMIC
    lines = lines.replace("OP", "add.f32").replace("MORE", "").replace("INITIAL", "0")
    lines = lines.replace("%t5", "{d}").replace("mov.u32 {d}, {d};", "")
    a = np.random.default_rng(0).integers(0, 99, 128).astype("f4")
    _, final = apply(
        lines.replace("ld.shared.u32", "ld.shared.f32"), LANE % 8, a, to="f4", results=2
    )
    sums = np.array([a[k == LANE % 8].sum() for k in range(8)], "f4")
    same(final, sums[LANE % 8])


def test_moves_of_vectors():
    a, b = bits("u8", 300), bits("u4", 300)
    lines = "mov.b64 {{%t0, %t1}}, {a}; mov.b64 {d}, {{%t1, %t0}};"
    same(apply(lines, a, to="u8"), a << np.uint64(32) | a >> np.uint64(32))
    lines = "mov.b32 {{%h0, %h1}}, {a}; mov.b32 {d}, {{%h1, %h0}};"
    same(apply(lines, b, to="u4"), b << 16 | b >> 16)
    lines = "mov.b64 {{_, {d}}}, {a};"
    same(apply(lines, a, to="u4"), (a >> np.uint64(32)).astype("u4"))


def test_selections():
    a, b, c = bits("u4", 300, 0), bits("u4", 300, 1), bits("i4", 300, 2)
    same(apply("slct.u32.s32 {d}, {a}, {b}, {c};", a, b, c, to="u4"), np.where(c >= 0, a, b))
    lines = "setp.lt.s32 %p0, {c}, 0; not.pred %p1, %p0; selp.b32 {d}, {a}, {b}, %p1;"
    same(apply(lines, a, b, c, to="u4"), np.where(c >= 0, a, b))
