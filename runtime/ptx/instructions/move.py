"""Moves, selections and conversions of addresses."""

from __future__ import annotations

from typing import cast

import numpy as np

from ..batch import CLOCKS, Batch
from ..decode import Decoder, Effect, Lanewise, Operation, Results, Run, instruction
from ..lanes import Lanes, put
from ..memory import GLOBAL_BASE, LOCAL_BASE, SHARED_BASE, WINDOW_BYTES
from ..operands import RegisterView, Source, Special
from ..syntax import Vector
from ..types import TYPES

_WINDOWS = {
    "shared": SHARED_BASE,
    "shared::cta": SHARED_BASE,
    "local": LOCAL_BASE,
    "global": 0,
    "const": 0,
    "param": 0,
}


def choose(condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(condition, a, b)


def _copy(a: np.ndarray) -> np.ndarray:
    return a


@instruction("mov")
def mov(i: Decoder) -> Operation:
    type = i.type()
    i.arity(2)
    target, origin = i.operands
    if isinstance(target, Vector):
        return _unpack(i, type.bits)
    if isinstance(origin, Vector):
        return _pack(i, type.bits)
    source = i.source(1, type)
    result = i.result(0, type)
    if isinstance(source, Special) and source.name in CLOCKS:
        return _read_clock(source.name, result)
    return Lanewise(np.positive if type.kind in "us" else _copy, result, source)


def _read_clock(name: str, result: RegisterView | None) -> Operation:
    """Clocks count reads of clocks: results do not depend on the time of day."""

    def bind(batch: Batch) -> Run:
        def run(lanes: Lanes | None) -> None:
            batch.clock += 16
            value = batch.clock >> 32 if name.endswith("_hi") else batch.clock
            if result is not None:
                out = result.array(batch)
                put(out, lanes, out.dtype.type(value & int(np.iinfo(out.dtype).max)))

        return run

    return Effect(bind)


def _part_type(i: Decoder, bits: int, count: int) -> str:
    if bits % count or f"b{bits // count}" not in TYPES:
        raise i.error(f"{bits} bits do not fall into {count} parts")
    return f"b{bits // count}"


def _unpack(i: Decoder, bits: int) -> Operation:
    """`mov.b64 {%r1, %r2}, %rd1`: the first element is the lowest."""
    elements = i.elements(0)
    part = TYPES[_part_type(i, bits, len(elements))]
    whole = TYPES[f"u{bits}"]
    shifts = [whole.dtype.type(part.bits * k) for k in range(len(elements))]
    results = tuple(i.write(element, part) for element in elements)
    return Results(lambda a: tuple(a >> shift for shift in shifts), results, i.source(1, whole))


def _pack(i: Decoder, bits: int) -> Operation:
    elements = i.elements(1)
    part = TYPES[_part_type(i, bits, len(elements))]
    whole = TYPES[f"u{bits}"]
    dtype = whole.dtype

    def packed(*parts: np.ndarray) -> np.ndarray:
        total = parts[0].astype(dtype)
        for k, value in enumerate(parts[1:], start=1):
            total = total | value.astype(dtype) << dtype.type(part.bits * k)
        return total

    sources = [i.read(element, part) for element in elements]
    return Lanewise(packed, i.result(0, whole), *sources)


@instruction("selp")
def select(i: Decoder) -> Operation:
    """The first source where the predicate holds, else the second."""
    type = i.type()
    i.arity(4)
    predicate, negated = i.predicate(i.operands[3])
    first, second = (2, 1) if negated else (1, 2)
    return Lanewise(
        choose,
        i.result(0, type),
        predicate,
        i.source(first, type),
        i.source(second, type),
    )


@instruction("slct")
def select_by_sign(i: Decoder) -> Operation:
    """The first source where the third is not negative; .ftz makes no difference to a sign test."""
    i.flag("ftz")
    type, by = i.type(), i.type()
    i.arity(4)
    return Lanewise(
        lambda a, b, c: choose(c >= 0, a, b),
        i.result(0, type),
        i.source(1, type),
        i.source(2, type),
        i.source(3, by),
    )


@instruction("cvta")
def convert_address(i: Decoder) -> Operation:
    """Between addresses of a space and generic ones."""
    to_space = i.flag("to")
    base = _WINDOWS.get(space := i.need(*_WINDOWS))
    if base is None:
        raise i.error(f"no generic addresses of .{space}")
    type = i.type()
    i.arity(2)
    source = i.source(1, type)
    if base == 0 or type.bits == 32:
        return Lanewise(_copy, i.result(0, type), source)
    offset = type.dtype.type(base)
    function = np.subtract if to_space else np.add
    return Lanewise(lambda a: function(a, offset), i.result(0, type), source)


@instruction("isspacep")
def is_in_space(i: Decoder) -> Operation:
    space = i.need("global", "shared", "local", "const", "param", "shared::cta", "shared::cluster")
    i.arity(2)
    base = _WINDOWS.get("shared" if space.startswith("shared") else space) or GLOBAL_BASE
    low, high = (
        np.uint64(base),
        np.uint64(base + (WINDOW_BYTES << 8 if base == GLOBAL_BASE else WINDOW_BYTES)),
    )
    if space in ("const", "param"):
        # Constants and parameters lie in global memory here, where nothing tells them apart.
        raise i.error(f"isspacep.{space} is not supported")
    source = cast(Source, i.source(1, TYPES["u64"]))
    return Lanewise(lambda a: (a >= low) & (a < high), i.result(0, TYPES["pred"]), source)
