"""The place of the largest or the smallest element of each row, the first of equal ones.

    arg_max, arg_min (i, x: memref<?xf32>, places: memref<?xi64>, rows, columns)    grid = rows

NaN is chosen only where all else is the worst infinity. Each of 16 lanes keeps its extreme and the
number of the vector that it was in. The last argument is also what one grid index touches
(passes/kernels/launch.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..isa import Isa
from ..strategy import Kernel
from .attention.online import across

LANES = 16


def arg_extreme_kernel(*, largest: bool) -> Kernel:
    """A grid index a row, of any length but 0. See the file's head."""
    name = "arg_max" if largest else "arg_min"
    return Kernel(name, (1,), partial(_emit, name, largest))


def _emit(name: str, largest: bool, module: Any, isa: Isa) -> None:
    arguments = [buffer("f32"), buffer("i64"), INDEX, INDEX]
    with function(module, isa, name, arguments) as (b, i, x, places, _, columns):
        b.store(_place(b, x, i * columns, columns, largest), places, i)


def _place(b: Builder, x: Value, begin: Value, columns: Value, largest: bool) -> Value:
    extreme = b.max if largest else b.min
    worst = b.const(float("-inf") if largest else float("inf"), vec(LANES, "f32"))

    def better(one: Value, other: Value) -> Value:
        return one > other if largest else one < other

    def step(number: Value, mask: Value | None, best: Value, turns: Value) -> list[Value]:
        element = b.load(x, begin + number * LANES, LANES, mask)
        if mask is not None:
            element = b.select(mask, element, worst)
        turn = b.splat(b.from_index(number, "i32"), LANES)
        return [extreme(element, best), b.select(better(element, best), turn, turns)]

    start = [worst, b.const(0, vec(LANES, "i32"))]
    whole, rest = columns // LANES, columns % LANES
    with b.loop(0, whole, carry=start) as loop:
        loop.carry(*step(loop.i, None, *loop.args))
    done = loop.results
    best, turns = b.either(
        rest != 0,
        [value.type for value in start],
        lambda: step(whole, b.mask(LANES, rest), *done),
        lambda: done,
    )
    lanes = b.zext(turns, "i64") * LANES + b.consts(range(LANES), "i64")
    chosen = best == b.splat(across(b, best, extreme), LANES)
    return across(b, b.select(chosen, lanes, b.const(2**63 - 1, lanes.type)), b.min)
