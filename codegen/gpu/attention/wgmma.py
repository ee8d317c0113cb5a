"""Attention of many rows by `wgmma`: sm_90a.

Two warpgroups have 64 rows of a head each, a third one copies. Tiles of keys and values lie in
shared memory in atoms of 64 columns with the swizzle of 128 bytes. They are made so before
(halves.py), and one bulk copy brings a tile; or they are boxes of a cache of f16 (boxes.py). Stages
go round by barriers of their own. Queries and weights are A, in registers; keys are B as they are,
values B transposed. Beside 64 columns of f16 values there are ones: products are sums of weights,
too. They lie behind all stages once; a descriptor says how far they are from 16 keys of its tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel
from abqc.runtime.tensor_parameter import TensorParameter

from ..arch import WARP
from ..atoms import Element
from ..builder import POINTER
from ..wgmma.barriers import (
    BARRIER_BYTES,
    Barriers,
    fence_async,
    prefetch_map,
    publish_barriers,
    set_registers,
    shared_address,
)
from ..wgmma.instructions import (
    CHUNK_BYTES,
    ROWS,
    WARPGROUP,
    WARPGROUP_WARPS,
    Wgmma,
    begin_products,
    commit_products,
    descriptor_at,
    finished,
    leading_bits,
)
from ..wgmma.ring import Place, next_place
from ..wgmma.turns import Turns
from ..wgmma.warpgroups import BOX_REGISTERS, REGISTERS
from .boxes import reads_boxes, stored_tensors
from .halves import HALF, TileShape
from .mma import MmaTile
from .spec import AttentionSpec
from .swizzled import ATOM, ATOM_BYTES, STEP_BYTES, SwizzledShape
from .tile import tile_kernel
from .weights import Fragments, State, Weighed, like, registers_of

CONSUMERS = 2
CONSUMER_WARPS = CONSUMERS * WARPGROUP_WARPS
THREADS = (CONSUMERS + 1) * WARPGROUP
MOST_BESIDE_BOTH_WAYS = 96  # registers of queries and sums, of kernels with two parts
ONES = 0x3C00_3C00  # two f16
NARROWEST, WIDEST = 33, 128  # columns of a head


def wgmma_unsupported(spec: AttentionSpec) -> str | None:
    """Why this kernel cannot do `spec`, as a sentence; None if it can."""
    if spec.precision == "f32":
        return "tensor cores have no f32"
    if not all(NARROWEST <= c <= WIDEST for c in (spec.head, spec.value_head)):
        return f"heads are {NARROWEST} to {WIDEST} columns wide"
    return None


def wgmma_kernel(spec: AttentionSpec) -> Kernel:
    """Any number of rows, `block[0]` of them a block. See kernels.py for the arguments."""
    shape = SwizzledShape(spec)
    ones = STEP_BYTES if shape.sum_columns else 0
    shared = shape.stages * (shape.bytes + 2 * BARRIER_BYTES) + ones + THREADS // WARP * 4
    name = f"attention_wgmma_{spec.precision}_{spec.name}"
    last: Sequence[str | TensorParameter] = (POINTER,)
    if reads_boxes(spec):
        last = stored_tensors(spec, shape.keys, ATOM)
    return tile_kernel(
        name,
        spec,
        _Tile,
        rows=CONSUMERS * ROWS,
        threads=THREADS,
        shared=shared,
        registers=REGISTERS[CONSUMERS][0],
        last=last,
    )


class _Tile(MmaTile):
    """Accumulators of a warp are those of `mma.sync`."""

    shape: SwizzledShape

    @staticmethod
    def shape_of(spec: AttentionSpec) -> TileShape:
        return SwizzledShape(spec)

    @property
    def jumps(self) -> bool:
        return super().jumps or self.shape.resident <= MOST_BESIDE_BOTH_WAYS

    @property
    def warp(self) -> Value:
        # Those that copy read the limits of the block's rows, too.
        return self.b.warp % CONSUMER_WARPS

    def emit(self, last: Sequence[Value]) -> None:
        b, shape = self.b, self.shape
        copying, multiplying = BOX_REGISTERS[CONSUMERS]
        base, behind = shared_address(b), shape.stages * shape.bytes
        self.base, self.ones = base, base + behind
        if shape.sum_columns:
            self._write_ones(behind)
            behind += STEP_BYTES
        self.full = Barriers(b, base + behind, shape.stages)
        behind += shape.stages * BARRIER_BYTES
        self.empty = Barriers(b, base + behind, shape.stages)
        behind += shape.stages * BARRIER_BYTES
        with b.when(b.thread == 0):
            self.full.initialize(1)
            self.empty.initialize(CONSUMER_WARPS)
            publish_barriers(b)
        b.barrier()
        end = self.last_end(self.limits, behind)
        copies = b.warp >= CONSUMER_WARPS
        with b.when(copies):
            set_registers(b, copying, more=False)
            with b.when(b.thread == CONSUMERS * WARPGROUP):
                boxes = reads_boxes(self.spec)
                self._copy_tiles(self._boxes(last) if boxes else self._runs(last), end)
        with b.when(b.warp < CONSUMER_WARPS):
            set_registers(b, multiplying, more=True)
            self._multiply(end)

    def _write_ones(self, place: int) -> None:
        """The columns beside the values of 16 keys, from byte `place` of shared memory on."""
        b = self.b
        words = CHUNK_BYTES // 4
        with b.when(b.thread < STEP_BYTES // CHUNK_BYTES):
            ones = b.vector([b.const(ONES, "i32")] * words)
            b.store(ones, b.shared, b.thread * CHUNK_BYTES + place)
            fence_async(b)

    def _copy_tiles(self, copy: Callable[[Value, Value], None], end: Value) -> None:
        """By one thread; `copy` begins to copy the tile of a key to a stage."""
        b, size = self.b, self.shape.bytes
        zero = b.const(0, "i32")
        with b.loop(0, end, self.shape.keys, [zero, zero]) as loop:
            stage, phase = loop.args
            self.empty.wait(stage, phase ^ 1)
            self.full.expect(stage, size)
            copy(stage, loop.i)
            loop.carry(*next_place(b, Place(stage, phase), self.shape.stages).values)

    def _runs(self, last: Sequence[Value]) -> Callable[[Value, Value], None]:
        """Of tiles that were made before: one copy each."""
        b, size = self.b, self.shape.bytes
        tiles = self._tiles(*last)

        def copy(stage: Value, key: Value) -> None:
            source = b.at(tiles, b.wide(key // self.shape.keys) * size)
            self.full.copy(stage, self.base + stage * size, source, size)

        return copy

    def _boxes(self, last: Sequence[Value]) -> Callable[[Value, Value], None]:
        """Of keys and values where they are: a box for each atom."""
        b, problem, shape = self.b, self.problem, self.shape
        *_, keys, values = last
        batch, head = self.number // problem.heads, self.number % problem.heads // problem.group
        for tensor in (keys, values):
            prefetch_map(b, tensor)

        def copy(stage: Value, key: Value) -> None:
            place = self.base + stage * shape.bytes
            for tensor, begin, pitch in (
                (keys, 0, shape.k_pitch),
                (values, shape.values, shape.v_pitch),
            ):
                for atom in range(pitch // ATOM_BYTES):
                    target = place + (begin + atom * shape.atom_bytes)
                    at = [b.const(atom * ATOM, "i32"), key, head, batch]
                    self.full.copy_box(stage, target, tensor, at)

        return copy

    def _multiply(self, end: Value) -> None:
        """Two warpgroups take turns: while one multiplies, the other one weighs scores. A turn is
        the values of a tile and the keys of the next one."""
        b = self.b
        with b.when(end > 0):
            self._store(self._sum_tiles(end))
        with b.when(end <= 0):
            self._store(State.first(b, self.shape.sums))

    def _sum_tiles(self, end: Value) -> State:
        b, shape = self.b, self.shape
        plain, queries = self._all_plain(), self._queries()
        turns = Turns(b, b.warp // WARPGROUP_WARPS)
        turns.begin()
        first = Place(b.const(0, "i32"), b.const(0, "i32"))
        self.full.wait(first.stage, first.phase)
        queries = like(queries, begin_products(b, registers_of(queries)))
        scores = finished(b, self._score(queries, self._stage(first)))
        masked, factor = self._masked(_by_columns(scores), b.const(0, "i32"), plain)
        weighed = self.weights.rise(masked, factor, State.first(b, shape.sums))
        count, parts = len(registers_of(weighed.weights)), shape.parts
        with b.loop(0, end - shape.keys, shape.keys, [*first.values, *weighed.values]) as loop:
            here, weighed = Place(*loop.args[:2]), Weighed.of(loop.args[2:], count, parts)
            following = next_place(b, here, shape.stages)
            self.full.wait(following.stage, following.phase)
            turns.wait()
            sums = self._add(weighed, here)
            scores = self._score(queries, self._stage(following))
            turns.end()
            done = finished(b, [*scores, *sums])
            self._release(here)
            scores, sums = done[: len(scores)], done[len(scores) :]
            masked, factor = self._masked(_by_columns(scores), loop.i + shape.keys, plain)
            weighed = self.weights.weigh(masked, factor, replace(weighed.state, sums=sums))
            loop.carry(*following.values, *weighed.values)
        here, weighed = Place(*loop.results[:2]), Weighed.of(loop.results[2:], count, parts)
        turns.wait()
        sums = self._add(weighed, here)
        turns.end_last()
        return replace(weighed.state, sums=finished(b, sums))

    def _release(self, place: Place) -> None:
        """A stage that the warp has read."""
        b = self.b
        b.warp_barrier()
        with b.when(b.lane == 0):
            self.empty.arrive(place.stage)

    def _stage(self, place: Place) -> Value:
        """The descriptor of its first bytes."""
        b = self.b
        first = (self.base & 0x3FFFF) >> 4
        return descriptor_at(b, place.stage * (self.shape.bytes >> 4) + first, ATOM_BYTES)

    def _products(
        self,
        instruction: Wgmma,
        fragments: Fragments,
        addresses: Sequence[Value],
        sums: Sequence[Value],
        *,
        adds: bool,
    ) -> list[Value]:
        """Start `sums` (`adds`) + A B: A's `fragments` by step and part, B's descriptors by part
        and step."""
        added, count = list(sums), len(fragments)
        pairs = [(1, 0), (0, 1), (0, 0)] if self.shape.parts == 2 else [(0, 0)]
        for step, parts in enumerate(fragments):
            for left, right in pairs:
                at = addresses[right * count + step]
                added = instruction.emit(self.b, parts[left], at, added, adds)
                adds = True
        commit_products(self.b)
        return added

    def _wgmma(self, columns: int, *, transposed: bool = False) -> Wgmma:
        element: Element = "bf16" if HALF[self.spec.precision] == "bf16" else "f16"
        return Wgmma(columns, (element, element), transposed)

    def _score(self, queries: Fragments, tile: Value) -> list[Value]:
        """Start products with the keys of the tile at a descriptor, the first one of them not added
        to anything."""
        b, shape = self.b, self.shape
        first, steps = leading_bits(CHUNK_BYTES), ATOM // 16
        addresses = [
            tile
            + (first + (part * shape.k_part + s // steps * shape.atom_bytes + s % steps * 32 >> 4))
            for part in range(shape.parts)
            for s in range(len(queries))
        ]
        unset = [b.undefined("f32") for _ in range(shape.keys // 2)]
        return self._products(self._wgmma(shape.keys), queries, addresses, unset, adds=False)

    def _add(self, weighed: Weighed, place: Place) -> list[Value]:
        """Start products of weights and the values of a stage's tile, added to sums."""
        b, shape = self.b, self.shape
        weights, sums = weighed.weights, weighed.state.sums
        fenced = begin_products(b, [*sums, *registers_of(weights)])
        sums, weights = fenced[: len(sums)], like(weights, fenced[len(sums) :])
        instruction = self._wgmma(2 * len(sums), transposed=True)
        addresses = self._beside_ones(place) if shape.sum_columns else self._values(place)
        return self._products(instruction, weights, addresses, sums, adds=True)

    def _values(self, place: Place) -> list[Value]:
        """Descriptors of a tile's values by part and step."""
        shape, tile = self.shape, self._stage(place)
        first = leading_bits(shape.atom_bytes) + (shape.values >> 4)
        return [
            tile + (first + (part * shape.v_part + step * STEP_BYTES >> 4))
            for part in range(shape.parts)
            for step in range(shape.keys // 16)
        ]

    def _beside_ones(self, place: Place) -> list[Value]:
        """The same where ones are the next atom. From step to step it comes nearer: counted from
        the last one on, what is added is above 0."""
        b, shape = self.b, self.shape
        nearer, last = leading_bits(STEP_BYTES) - (STEP_BYTES >> 4), shape.keys // 16 - 1
        address = self.base + (shape.values + last * STEP_BYTES)
        first = ((address & 0x3FFFF) >> 4) + (self.ones - address >> 4 << 16)
        # Of 32 bits: a stage further on, and as much nearer to the ones.
        stage = leading_bits(shape.bytes) - (shape.bytes >> 4)
        tile = descriptor_at(b, first - place.stage * stage, ATOM_BYTES)
        return [tile + nearer * (last - step) for step in range(last + 1)]


def _by_columns(scores: Sequence[Value]) -> list[list[Value]]:
    return [list(scores[i : i + 4]) for i in range(0, len(scores), 4)]
