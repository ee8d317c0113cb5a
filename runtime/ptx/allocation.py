"""Which registers may share storage.

PTX names a new register for nearly every value; a kernel has hundreds, of which few are alive at
once. Registers of one width whose lives do not overlap share an array (linear scan: M. Poletto and
V. Sarkar, "Linear Scan Register Allocation", 1999), so that a batch stays in the caches.

Lives are those of one thread. That threads of a batch stand at different places does not matter:
each has its own element of the array.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .operands import Slot

if TYPE_CHECKING:
    from .program import Block, Decoded


def share_storage(blocks: Sequence[Block], slots: Sequence[Slot]) -> list[int]:
    """For each register the number of its storage; equal numbers have equal widths.

    -1 for registers that no block touches.
    """
    storage = [-1] * len(slots)
    free: dict[tuple[int, bool], list[int]] = {}
    active: list[tuple[int, int]] = []  # the end of a life, and the register
    count = 0
    for start, end, number in sorted(_lives(blocks)):
        while active and active[0][0] < start:
            _, dead = heapq.heappop(active)
            free.setdefault(_class(slots[dead]), []).append(storage[dead])
        pool = free.get(_class(slots[number]))
        if pool:
            storage[number] = pool.pop()
        else:
            storage[number] = count
            count += 1
        heapq.heappush(active, (end, number))
    return storage


def _class(slot: Slot) -> tuple[int, bool]:
    return slot.bits, slot.is_predicate


def _lives(blocks: Sequence[Block]) -> list[tuple[int, int, int]]:
    """(first, last, register): positions of instructions, blocks one after the other."""
    alive_before, alive_after = _liveness(blocks)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    position = 0  # which only grows
    for index, block in enumerate(blocks):
        for number in alive_before[index]:
            first.setdefault(number, position)
            last[number] = position
        for step in block.steps:
            for number in _reads(step) | step.operation.writes:
                first.setdefault(number, position)
                last[number] = position
            position += 1
        for number in alive_after[index]:
            first.setdefault(number, position - 1)
            last[number] = position - 1
    return [(first[number], last[number], number) for number in first]


def _reads(step: Decoded) -> frozenset[int]:
    """What a step reads; where a guard leaves lanes out, their old values live on."""
    if step.guard is None:
        return step.operation.reads
    return step.operation.reads | step.operation.writes | {step.guard[0].number}


def _liveness(blocks: Sequence[Block]) -> tuple[list[set[int]], list[set[int]]]:
    """Registers that are alive at the beginning and at the end of each block."""
    needs, defines = zip(*(_summary(block) for block in blocks), strict=True)
    before: list[set[int]] = [set(need) for need in needs]
    after: list[set[int]] = [set() for _ in blocks]
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(blocks))):
            block = blocks[index]
            following = set(block.labels.values())
            if block.next is not None:
                following.add(block.next)
            leaving = set().union(*(before[target] for target in following))
            if leaving != after[index]:
                after[index] = leaving
                before[index] |= leaving - defines[index]
                changed = True
    return before, after


def _summary(block: Block) -> tuple[set[int], set[int]]:
    """What a block reads before it writes it, and what it writes in any case."""
    needs: set[int] = set()
    defines: set[int] = set()
    for step in block.steps:
        needs |= _reads(step) - defines
        if step.guard is None:
            defines |= step.operation.writes
    return needs, defines
