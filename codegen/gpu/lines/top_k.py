"""The first k elements of every line in order, and their places in it.

    top_k   (x, values, indices i64; n i32, k i32, inner i32)             grid = outer * inner

x is outer x n x inner, values and indices are outer x k x inner; a line has the stride `inner`. A
block has a line. The order is that of (key, place), where keys are integers in the order of the
elements (order_keys.py): so no two are equal, and the result does not depend on scheduling.

1. Where k < n, the k-th smallest pair is found digit by digit, the highest first, by counting in
   shared memory (a radix select). It ends when all candidates that are left belong to the result.
2. What does not come after it is collected: keys in `values`, places in `indices`.
3. These are sorted where they are by a bitonic network, whose comparisons all go one way, so that
   what is missing to a power of two need not be there.
4. The elements take the places of their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, bits_of, type_of
from abqc.codegen.strategy import Kernel, Variant

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from .block_scan import across_warps, warp_scan
from .order_keys import key_type, order_key

DIGIT = 8  # bits
DIGITS = 1 << DIGIT
PLACE_BITS = 32
UNROLL = 4  # elements that a thread loads at once
FEW_THREADS, MANY_THREADS = 256, 1024
SHORT = 4096  # lines up to here get few threads

# Words of shared memory.
COUNTS = 0
SCRATCH = COUNTS + DIGITS
FOUND = SCRATCH + MANY_THREADS // WARP
WORDS = FOUND + 4

State = list[Value]


def top_k_kernels(element: str, *, largest: bool) -> tuple[Variant, ...]:
    """The kernels by the length of a line."""
    few, many = (_kernel(element, largest, threads) for threads in (FEW_THREADS, MANY_THREADS))
    return Variant(few, 1, SHORT), Variant(many, SHORT + 1, None)


def _kernel(element: str, largest: bool, threads: int) -> Kernel:
    name = f"top_k_{element}_{'largest' if largest else 'smallest'}_{threads}"
    return Kernel(name, (1,), partial(_emit, name, element, largest, threads))


def _emit(name: str, element: str, largest: bool, threads: int, module: Any, arch: GpuArch) -> None:
    types = [POINTER] * 3 + ["i32"] * 3
    with kernel(module, arch, name, types, threads=threads, shared=WORDS * 4) as opened:
        b, block, x, values, indices, n, k, inner = opened
        with b.when(k > 0):
            outer, column = block // inner, block % inner

            def line(pointer: Value, length: Value, item: int) -> tuple[Value, Value]:
                """Where a line begins, and its stride in bytes."""
                at = b.wide(outer) * b.wide(length) * b.wide(inner) + b.wide(column)
                return b.at(pointer, at * item), b.wide(inner) * item

            item = bits_of(type_of(element)) // 8
            top = _TopK(
                b, element, largest, n, k, line(x, n, item), line(values, k, item),
                line(indices, k, 8),
            )  # fmt: skip
            top.collect(top.select())
            top.sort()
            top.finish()


@dataclass(frozen=True)
class _TopK:
    """The steps for one line of `n` elements; lines are pointers and strides."""

    b: GpuBuilder
    element: str
    largest: bool
    n: Value
    k: Value
    x: tuple[Value, Value]
    values: tuple[Value, Value]
    indices: tuple[Value, Value]

    @property
    def bits(self) -> int:
        return bits_of(type_of(self.element))

    @property
    def key_type(self) -> str:
        return key_type(self.element)

    # Memory

    def _load(self, line: tuple[Value, Value], i: Value, type_: str) -> Value:
        return self.b.load(line[0], type_, self.b.wide(i) * line[1])

    def _store(self, value: Value, line: tuple[Value, Value], i: Value) -> None:
        self.b.store(value, line[0], self.b.wide(i) * line[1])

    def _load_pair(self, i: Value) -> list[Value]:
        key = self.b.sext(self._load(self.values, i, f"i{self.bits}"), self.key_type)
        return [key, self.b.trunc(self._load(self.indices, i, "i64"), "i32")]

    def _store_pair(self, pair: Sequence[Value], i: Value) -> None:
        self._store(self.b.trunc(pair[0], f"i{self.bits}"), self.values, i)
        self._store(self.b.zext(pair[1], "i64"), self.indices, i)

    def _sweep(
        self,
        count: Value,
        load: Callable[[Value], list[Value]],
        use: Callable[..., None],
    ) -> None:
        """`use(i, *load(i))` for 0 <= i < count; a thread loads for several i before it uses any.

        `load` may be called for an i beyond, in place of which it gets another one."""
        b = self.b
        with b.loop(b.thread, count, b.threads * UNROLL) as loop:
            places = [loop.i + u * b.threads for u in range(UNROLL)]
            loaded = [load(b.min(place, count - 1)) for place in places]
            for place, values in zip(places, loaded, strict=True):
                with b.when(place < count):
                    use(place, *values)

    # Keys

    def _key(self, i: Value) -> list[Value]:
        value = self._load(self.x, i, self.element)
        return [order_key(self.b, value, self.element, descending=self.largest)]

    def _unsigned(self, key: Value) -> Value:
        """A key as an unsigned number in the same order."""
        mask = (1 << self.bits) - 1
        biased = key ^ (1 << (self.bits - 1))
        return biased if bits_of(key.type) == self.bits else biased & mask

    # Steps

    def select(self) -> State:
        """The first digits of the k-th smallest (key, place), and the bits that are in them.

        Without them where k is n."""
        b = self.b
        key_digits, digits = self.bits // DIGIT, (self.bits + PLACE_BITS) // DIGIT
        none, zero = b.const(0, self.key_type), b.const(0, "i32")
        done = b.zext(self.k == self.n, "i32")
        with b.loop(0, digits, carry=[none, none, zero, zero, self.k, done]) as loop:
            types = [value.type for value in loop.args]
            in_key = loop.i < key_digits
            key_shift = b.select(in_key, (key_digits - 1 - loop.i) * DIGIT, 0)
            place_shift = b.select(in_key, zero, (digits - 1 - loop.i) * DIGIT)
            shifts = b.zext(key_shift, self.key_type), place_shift

            def narrow() -> State:
                return self._next_digit(loop.args, in_key, *shifts)

            loop.carry(*b.either(loop.args[-1] == 0, types, narrow, lambda: loop.args))
        return loop.results[:4]

    def _next_digit(
        self, state: State, in_key: Value, key_shift: Value, place_shift: Value
    ) -> State:
        """One more digit of the state: of a key, or of a place."""
        b = self.b
        key_bits, key_mask, place_bits, place_mask, need, _ = state
        with b.when(b.thread < DIGITS):
            b.store(b.const(0, "i32"), b.shared, (b.thread + COUNTS) * 4)
        b.barrier()

        def count(i: Value, key: Value) -> None:
            key = self._unsigned(key)
            other = b.zext((i ^ place_bits) & place_mask, self.key_type)
            other = other | ((key ^ key_bits) & key_mask)
            of_key = b.trunc(key >> key_shift, "i32")
            digit = b.select(in_key, of_key, i >> place_shift) & (DIGITS - 1)
            with b.when(other == 0):
                b.atomic("add", b.shared, b.const(1, "i32"), (digit + COUNTS) * 4)

        self._sweep(self.n, self._key, count)
        b.barrier()

        def of_digit() -> list[Value]:
            return [b.load(b.shared, "i32", (b.thread + COUNTS) * 4)]

        zero = b.const(0, "i32")
        (mine,) = b.either(b.thread < DIGITS, ["i32"], of_digit, lambda: [zero])
        upto = warp_scan(b, mine)
        total = b.exchange(upto, "idx", WARP - 1)
        scratch = b.at(b.shared, SCRATCH * 4)
        before, _ = across_warps(b, scratch, total, zero, DIGITS // WARP)
        before = before + (upto - mine)
        found = b.at(b.shared, FOUND * 4)
        with b.when((before < need) & (need <= before + mine)):
            # Four words, because LLVM reads three of them as four.
            for slot, value in enumerate((b.thread, need - before, mine, zero)):
                b.store(value, found, slot * 4)
        b.barrier()
        digit, need, candidates = (b.load(found, "i32", slot * 4) for slot in range(3))
        none, full = b.const(0, self.key_type), b.const(DIGITS - 1, self.key_type)
        wide = b.zext(digit, self.key_type)
        return [
            key_bits | b.select(in_key, wide << key_shift, none),
            key_mask | b.select(in_key, full << key_shift, none),
            place_bits | b.select(in_key, zero, digit << place_shift),
            place_mask | b.select(in_key, zero, b.const(DIGITS - 1, "i32") << place_shift),
            need,
            b.zext(need == candidates, "i32"),
        ]

    def collect(self, state: State) -> None:
        """Write the k pairs that do not come after the state, in any order."""
        b = self.b
        key_bits, key_mask, place_bits, place_mask = state
        next_slot = b.at(b.shared, COUNTS * 4)
        with b.when(b.thread == 0):
            b.store(b.const(0, "i32"), next_slot)
        b.barrier()
        top = 1 << (bits_of(key_bits.type) - 1)

        def keep(i: Value, key: Value) -> None:
            masked = self._unsigned(key) & key_mask
            here = (masked == key_bits) & ((i & place_mask) <= place_bits)
            with b.when(((masked ^ top) < (key_bits ^ top)) | here):
                slot = b.atomic("add", next_slot, b.const(1, "i32"))
                self._store_pair([key, i], slot)

        self._sweep(self.n, self._key, keep)
        b.barrier()

    def sort(self) -> None:
        """Sort the pairs. Level s merges runs of 2^(s-1): the first step compares with the mirror
        image in a run of 2^s, the others at half the distance each time."""
        b, k = self.b, self.k
        exact = b.const(0, "i1")
        levels = 32 - b.intrinsic("llvm.ctlz.i32", "i32", k - 1, exact)
        one = b.const(1, "i32")
        with b.loop(1, levels + 1) as level, b.loop(0, level.i) as step:
            shift = level.i - 1 - step.i
            distance = one << shift
            mirror = (one << level.i) - 1

            def ends(pair: Value) -> tuple[Value, Value]:
                low = ((pair >> shift) << (shift + 1)) | (pair & (distance - 1))
                return low, b.select(step.i == 0, low ^ mirror, low + distance)

            def load(pair: Value) -> list[Value]:
                return [v for i in ends(pair) for v in self._load_pair(b.min(i, k - 1))]

            def exchange(pair: Value, *loaded: Value) -> None:
                (low, high), a, c = ends(pair), loaded[:2], loaded[2:]
                wrong = (a[0] > c[0]) | ((a[0] == c[0]) & (a[1] > c[1]))
                with b.when((high < k) & wrong):
                    self._store_pair(c, low)
                    self._store_pair(a, high)

            self._sweep(one << (levels - 1), load, exchange)
            b.barrier()

    def finish(self) -> None:
        """Write the elements."""

        def load(i: Value) -> list[Value]:
            return [self._load(self.x, self._load_pair(i)[1], self.element)]

        self._sweep(self.k, load, lambda i, value: self._store(value, self.values, i))
