"""What one core of this machine can do: bytes read from memory and multiply-adds a second."""

from __future__ import annotations

import mmap
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from abqc.codegen.builder import Builder, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from kernel_cases import compile_jit

POOL_BYTES = 192 << 20
RATE_STEPS = 1 << 16
CHAINS = 16  # independent sums of the kernel that measures the rate
STREAM_BLOCK = 1 << 16  # bytes of a grid index of the kernel that reads


class Pool:
    """Bytes of a mapped file, handed out so that none comes again before all others have."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            rng = np.random.default_rng(0)
            for _ in range(POOL_BYTES >> 20):
                file.write(rng.bytes(1 << 20))
            file.flush()
            mapped = mmap.mmap(file.fileno(), POOL_BYTES, prot=mmap.PROT_READ)
        self.bytes = np.frombuffer(mapped, np.uint8)
        self._next = 0
        int(self.bytes.view(np.uint64).sum())

    def take(self, size: int) -> np.ndarray:
        if self._next + size > POOL_BYTES:
            self._next = 0
        begin = self._next
        self._next += -(-size // 4096) * 4096
        return self.bytes[begin : begin + size]


def timed(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _emit_stream(streams: int, ahead: int, name: str, module, isa: Isa) -> None:
    """Reads STREAM_BLOCK bytes from i * STREAM_BLOCK on, and fetches what is `ahead` bytes away."""
    lanes = isa.lanes(32)
    part = STREAM_BLOCK // streams
    with function(module, isa, name, [buffer("i8"), buffer("i8")]) as (b, i, x, y):
        start = [b.const(0, vec(lanes, "i32"))] * streams
        with b.loop(0, part, 64, carry=start) as loop:
            sums = list(loop.args)
            for s in range(streams):
                at = i * STREAM_BLOCK + (loop.i + s * part)
                if ahead:
                    b.prefetch(x, at + ahead, locality=2)
                for line in range(0, 64, 4 * lanes):
                    sums[s] = sums[s] | b.load_as(x, at + line, vec(lanes, "i32"))
            loop.carry(*sums)
        b.store_as(sum_of(loop.results), y, 0)


def _emit_rate(name: str, module, isa: Isa) -> None:
    """CHAINS dot products of registers in each of RATE_STEPS steps."""
    lanes = isa.lanes(32)
    with function(module, isa, name, [buffer("i8"), buffer("i8")]) as (b, _, x, y):
        a, w = (b.load_as(x, at, vec(lanes, "i32")) for at in (0, 4 * lanes))
        start = [b.load_as(x, c, vec(lanes, "i32")) for c in range(CHAINS)]
        with b.loop(0, RATE_STEPS, carry=start) as loop:
            loop.carry(*(_dot(b, acc, a, w) for acc in loop.args))
        b.store_as(sum_of(loop.results), y, 0)


def _dot(b: Builder, acc, a, w):
    if b.isa.dot_u8i8:
        bytes_ = [b.bitcast(x, vec(4 * acc.lanes, "i8")) for x in (a, w)]
        return b.intrinsic(b.isa.dot_u8i8, acc.type, acc, *bytes_)
    words = [b.bitcast(x, vec(2 * acc.lanes, "i16")) for x in (a, w)]
    return acc + b.intrinsic(b.isa.madd_i16, acc.type, *words)


def sum_of(values):
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


class Machine:
    """Bytes (read in the best of several ways) and multiply-adds of one core, a second."""

    def __init__(self, isa: Isa, pool: Pool) -> None:
        emitters = {
            f"stream{streams}_{ahead}": partial(_emit_stream, streams, ahead)
            for streams, ahead in ((1, 0), (4, 1 << 10), (8, 1 << 10))
        }
        emitters["rate"] = _emit_rate
        kernels = [Kernel(name, (1,), partial(emit, name)) for name, emit in emitters.items()]
        jit = compile_jit(isa, kernels)
        y = np.zeros(64, np.uint8)
        blocks = POOL_BYTES // 8 // STREAM_BLOCK - 1
        self._read_bytes = blocks * STREAM_BLOCK
        operands = 4 if isa.dot_u8i8 else 2
        self._macs = RATE_STEPS * CHAINS * isa.lanes(32) * operands
        self._rate = jit.prepare("rate", 1, [pool.bytes, y])
        self._reads = {
            name: lambda name=name: jit.run(name, blocks, [pool.take(POOL_BYTES // 8), y])
            for name in emitters
            if name != "rate"
        }
        self.clear()

    def clear(self) -> None:
        """Forget what was measured."""
        self._read_seconds: dict[str, list[float]] = {name: [] for name in self._reads}
        self._rate_seconds: list[float] = []

    def measure(self) -> None:
        for name, read in self._reads.items():
            self._read_seconds[name].append(timed(read))
        self._rate_seconds.append(timed(self._rate))

    @property
    def bandwidth(self) -> float:
        return self._read_bytes / min(float(np.median(t)) for t in self._read_seconds.values())

    @property
    def rate(self) -> float:
        return self._macs / float(np.median(self._rate_seconds))

    def limit(self, weight_bytes: float, macs: float) -> float:
        """Seconds that no product can be faster than."""
        return max(weight_bytes / self.bandwidth, macs / self.rate)
