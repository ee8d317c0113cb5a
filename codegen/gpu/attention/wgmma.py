"""Attention of many rows by `wgmma`: sm_90a.

Two warpgroups have 64 rows of a head each, a third one copies. Tiles of keys and values lie in
shared memory in atoms of 64 columns with the swizzle of 128 bytes. They are made so before
(halves.py), and one bulk copy brings a tile; or they are boxes of a cache of f16 (boxes.py). Stages
go round by barriers of their own. Queries and weights are A, in registers; keys are B as they are,
values B transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel
from abqc.runtime.tensor_parameter import TensorParameter

from ..arch import WARP
from ..builder import POINTER
from ..wgmma.barriers import (
    BARRIER_BYTES,
    Barriers,
    prefetch_map,
    publish_barriers,
    set_registers,
    shared_address,
)
from ..wgmma.instructions import (
    ROWS,
    WARPGROUP,
    WARPGROUP_WARPS,
    Wgmma,
    begin_products,
    commit_products,
    descriptor,
    finished,
)
from ..wgmma.ring import Place, next_place
from ..wgmma.warpgroups import REGISTERS
from .boxes import reads_boxes, stored_tensors
from .halves import HALF, TileShape
from .mma import MmaTile
from .spec import MINUS_INFINITY, AttentionSpec
from .tile import tile_kernel

CONSUMERS = 2
CONSUMER_WARPS = CONSUMERS * WARPGROUP_WARPS
THREADS = (CONSUMERS + 1) * WARPGROUP
STAGE_LIMIT = 200 * 1024
ATOM = 64  # columns
ATOM_BYTES = 128
NARROWEST, WIDEST = 33, 128  # columns of a head


class SwizzledShape(TileShape):
    """Tiles of whole atoms: all keys of 64 columns, then the next columns."""

    @property
    def name(self) -> str:
        return "swizzled_halves"

    @property
    def k_pitch(self) -> int:
        return -(-self.head // ATOM) * ATOM_BYTES

    @property
    def v_pitch(self) -> int:
        return -(-self.value_head // ATOM) * ATOM_BYTES

    @property
    def keys(self) -> int:
        return 64

    @property
    def stages(self) -> int:
        return min(4, STAGE_LIMIT // self.bytes)

    @property
    def atom_bytes(self) -> int:
        """From atoms to those of the next columns."""
        return self.keys * ATOM_BYTES

    def place(self, row: Value, column: Value, pitch: int) -> Value:
        inside = row * ATOM_BYTES + column % ATOM * 2
        return column // ATOM * self.atom_bytes + (inside ^ ((inside & 0x380) >> 3))


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
    shared = shape.stages * (shape.bytes + 2 * BARRIER_BYTES) + THREADS // WARP * 4
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
    def warp(self) -> Value:
        # Those that copy read the limits of the block's rows, too.
        return self.b.warp % CONSUMER_WARPS

    def emit(self, last: Sequence[Value]) -> None:
        b, shape = self.b, self.shape
        _, copying, multiplying = REGISTERS[CONSUMERS]
        base, behind = shared_address(b), shape.stages * shape.bytes
        self.base = base
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
        b, shape = self.b, self.shape
        queries, plain = self._queries(), self._all_plain()
        zero = b.const(0, "i32")
        state = [b.const(MINUS_INFINITY, "f32")] * 2
        state += [b.const(0.0, "f32")] * (2 + shape.value_head // 2)
        with b.loop(0, end, shape.keys, [zero, zero, *state]) as loop:
            (stage, phase), state = loop.args[:2], loop.args[2:]
            largest, totals, sums = state[:2], state[2:4], state[4:]
            self.full.wait(stage, phase)
            here = self.base + stage * shape.bytes
            scores = self._masked(self._scores(queries, here), loop.i, plain)
            largest, totals, sums = self._weigh(scores, largest, totals, sums)
            sums = self._add_values(here, scores, sums)
            b.warp_barrier()
            with b.when(b.lane == 0):
                self.empty.arrive(stage)
            loop.carry(
                *next_place(b, Place(stage, phase), self.shape.stages).values,
                *largest,
                *totals,
                *sums,
            )
        self._store(loop.results[4:6], loop.results[6:])

    def _products(
        self,
        columns: int,
        fragments: Sequence[Sequence[Sequence[Value]]],
        addresses: Sequence[Value],
        sums: Sequence[Value],
        *,
        transposed: bool = False,
    ) -> list[Value]:
        """`sums` + A B: A's `fragments` by step and part, B's descriptors by part and step."""
        b = self.b
        element = HALF[self.spec.precision]
        instruction = Wgmma(columns, (element, element), transposed)  # type: ignore[arg-type]
        flat = begin_products(b, [*sums, *(r for s in fragments for part in s for r in part)])
        added, registers = flat[: len(sums)], iter(flat[len(sums) :])
        steps = [[[next(registers) for _ in part] for part in step] for step in fragments]
        pairs = [(1, 0), (0, 1), (0, 0)] if self.shape.parts == 2 else [(0, 0)]
        count = len(steps)
        for step, parts in enumerate(steps):
            for left, right in pairs:
                at = addresses[right * count + step]
                added = instruction.emit(b, parts[left], at, added, True)
        commit_products(b)
        return finished(b, added)

    def _scores(self, queries: list[list[list[Value]]], tile: Value) -> list[list[Value]]:
        b, shape = self.b, self.shape
        first = descriptor(b, tile, ATOM_BYTES)
        steps = ATOM // 16
        addresses = [
            first + (part * shape.k_part + s // steps * shape.atom_bytes + s % steps * 32 >> 4)
            for part in range(shape.parts)
            for s in range(len(queries))
        ]
        zeros = [b.const(0.0, "f32")] * (shape.keys // 2)
        values = self._products(shape.keys, queries, addresses, zeros)
        return [values[i : i + 4] for i in range(0, len(values), 4)]

    def _add_values(
        self, tile: Value, weights: list[list[Value]], sums: Sequence[Value]
    ) -> list[Value]:
        b, shape = self.b, self.shape
        first = descriptor(b, tile + shape.values, ATOM_BYTES, leading=shape.atom_bytes)
        fragments, count = [], shape.keys // 16
        for step in range(count):
            low, high = weights[2 * step], weights[2 * step + 1]
            fragments.append(self.half.fragments([low[:2], low[2:], high[:2], high[2:]]))
        addresses = [
            first + (part * shape.v_part + step * 16 * ATOM_BYTES >> 4)
            for part in range(shape.parts)
            for step in range(count)
        ]
        return self._products(shape.value_head, fragments, addresses, sums, transposed=True)
