"""Products of few rows against the machine's limits, one thread, weights from memory.

    python tests/bench/bench_few_rows.py [--rows 1 2 4 8] [--shapes 4096x4096 ...] [--peers]

The limit of a product is max(bytes of weights / bandwidth, multiply-adds / rate), with the
bandwidth of a kernel that only reads and the rate of VPDPBUSD (VPMADDWD where there is none) on
registers, both measured in the same run. A time is the median of calls that pack the rows and
multiply, all widths in turns, over weights in a mapped file that is larger than the caches. For one
row it says which of the bars are missed: limit / time; that a bit fewer never costs more than 2 %;
that 4 bits take at most 0.62 of 8 and 2 bits 0.65 of 4; with `--peers`, how many times faster than
the best of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import few_rows_peers
from abqc.codegen import isa as isas
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects import formats
from kernel_cases import compile_jit, variant_for
from machine_rates import POOL_BYTES, Machine, Pool, timed

SHAPES = ("4096x4096", "4096x11008", "11008x4096", "4096x14336", "576x1536")
PEER_BYTES = 96 << 20
LEAST_SHARE = {1: 0.55, 2: 0.7}  # of the limit in the time; more bits: 0.8
STEP, HALVES = 1.02, {8: 0.62, 4: 0.65}
FASTER_THAN_PEERS = {4: 1.2, 2: 2.0}


@dataclass
class Product:
    """What is timed, in seconds a call."""

    name: str
    bits: int
    prepare: Callable[[], Callable[[], None]]  # a call that reads weights not read for long
    weight_bytes: int
    macs: float
    products: int = 1  # of a call
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return float(np.median(self.times)) / self.products


# Ours


def product(args, pool: Pool, isa: Isa, name: str, bits: int, m: int, k: int, n: int) -> Product:
    """A kernel of strategy `name`, or of the one that is chosen."""
    weight = formats.parse_scheme(args.weight.format(bits=bits))
    spec = MatmulSpec(n, k, weight, formats.parse_scheme(args.activation))
    target = CpuTarget()
    strategies = {s.name: s for s in target.strategies}
    if not name:
        name = target.choose([spec], nodes=[""], working_set=POOL_BYTES)[0].strategy.name
    strategy = strategies[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(m * k, np.float32)
    q = np.zeros(m * strategy.row_bytes(spec), np.uint8)
    y, bias = np.zeros(m * n, np.float32), np.zeros(n, np.float32)
    pack, matmul = strategy.pack_kernel(spec), variant_for(strategy.matmul_kernels(spec), m)
    assert pack is not None
    jit = compile_jit(isa, [pack, matmul])
    some = formats.quantize_weight(np.zeros((16, k), np.float32), weight)
    panel = strategy.pack_weight(MatmulSpec(16, k, weight, spec.activation), some).nbytes
    size = panel * -(-n // 16)

    packing = jit.prepare(pack.name, pack.grid(m), [x, q, m])

    def prepare() -> Callable[[], None]:
        arguments = [q, pool.take(size), bias, y, m, n]
        multiply = jit.prepare(matmul.name, matmul.grid(m, n), arguments)

        def run() -> None:
            packing()
            multiply()

        return run

    return Product(name, bits, prepare, size, float(m) * n * k)


# Peers


def peers(m: int, k: int, n: int) -> list[Product]:
    """What others make of it; a call does as many products as there are weights beyond caches."""
    out = []
    x = np.random.default_rng(0).standard_normal((m, k), np.float32)
    for name, bits, make in (
        ("onnxruntime", 4, partial(few_rows_peers.onnxruntime_call, 4)),
        ("onnxruntime", 2, partial(few_rows_peers.onnxruntime_call, 2)),
        ("openvino", 4, few_rows_peers.openvino_call),
    ):
        size = n * k * bits // 8
        copies = -(-PEER_BYTES // size)
        run = make(x, n, copies)
        out.append(Product(name, bits, partial(_same, run), size, float(m) * n * k, copies))
    return out


def _same(run: Callable[[], None]) -> Callable[[], None]:
    return run


# Reports


def missed(products: Sequence[Product], machine: Machine, peers: dict[int, float]) -> list[str]:
    """The bars that products of one row miss."""
    out = []
    times = {p.bits: p.seconds for p in products}
    for p in products:
        share, least = (
            machine.limit(p.weight_bytes, p.macs) / p.seconds,
            LEAST_SHARE.get(p.bits, 0.8),
        )
        if share < least:
            out.append(f"w{p.bits}: {share:.2f} of the limit, not {least}")
        if p.bits - 1 in times and times[p.bits - 1] > STEP * p.seconds:
            out.append(f"w{p.bits - 1} takes {times[p.bits - 1] / p.seconds:.3f} of w{p.bits}")
    for bits, most in HALVES.items():
        if bits in times and bits // 2 in times and times[bits // 2] > most * times[bits]:
            ratio = times[bits // 2] / times[bits]
            out.append(f"w{bits // 2} takes {ratio:.3f} of w{bits}, not {most}")
    for bits, seconds in peers.items():
        if bits in times and seconds < FASTER_THAN_PEERS[bits] * times[bits]:
            ratio = seconds / times[bits]
            out.append(f"w{bits}: {ratio:.2f} times the peers, not {FASTER_THAN_PEERS[bits]}")
    return out


def report(m: int, shape: str, products, machine: Machine, peers: Sequence[Product]) -> None:
    print(
        f"{m} x {shape}: {machine.bandwidth / 1e9:.1f} GB/s, {machine.rate / 1e9:.0f} GMAC/s",
        flush=True,
    )
    for p in products:
        print(
            f"  w{p.bits} {p.name:9} {p.seconds * 1e6:8.1f} us (least {min(p.times) * 1e6:8.1f}) "
            f"{p.weight_bytes / p.seconds / 1e9:5.1f} GB/s {p.macs / p.seconds / 1e9:6.1f} GMAC/s "
            f"limit / time {machine.limit(p.weight_bytes, p.macs) / p.seconds:.2f}"
        )
    best: dict[int, float] = {}
    for peer in peers:
        print(f"  w{peer.bits} {peer.name}: {peer.seconds * 1e6:.1f} us")
        best[peer.bits] = min(best.get(peer.bits, np.inf), peer.seconds)
    if m == 1 and len({p.bits for p in products}) == len(products):
        for text in missed(products, machine, best):
            print(f"  missed: {text}")


@dataclass
class Round:
    """All products of a shape and a number of rows, compiled."""

    m: int
    shape: str
    products: list[Product]
    peers: Sequence[Product]

    def measure(self, machine: Machine, calls: int) -> None:
        everything = [*self.products, *self.peers]
        for p in everything:
            p.prepare()()
        for _ in range(calls):
            machine.measure()
            for p in everything:
                p.times.append(timed(p.prepare()))


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    out.add_argument("--isa", default="avx512")
    out.add_argument("--strategy", nargs="*", default=[""], help="not what the cost model chooses")
    out.add_argument("--bits", nargs="*", type=int, default=list(range(8, 0, -1)))
    out.add_argument("--weight", default="w{bits}", help="such as w{bits}:g32")
    out.add_argument("--activation", default="a8")
    out.add_argument("--rows", nargs="*", type=int, default=[1, 2, 4, 8])
    out.add_argument("--shapes", nargs="*", default=SHAPES, help="K x N")
    out.add_argument("--calls", type=int, default=21)
    out.add_argument("--peers", action="store_true")
    return out


def rounds(args, pool: Pool, isa: Isa) -> list[Round]:
    out = []
    for shape in args.shapes:
        k, n = (int(size) for size in shape.split("x"))
        for m in args.rows:
            products = [
                product(args, pool, isa, name, bits, m, k, n)
                for bits in args.bits
                for name in args.strategy
            ]
            beside = peers(m, k, n) if args.peers else []
            out.append(Round(m, shape, products, beside))
    return out


def main() -> None:
    args = parser().parse_args()
    pool, isa = Pool(), isas.by_name(args.isa)
    machine = Machine(isa, pool)
    for r in rounds(args, pool, isa):
        machine.clear()
        r.measure(machine, args.calls)
        report(r.m, r.shape, r.products, machine, r.peers)


if __name__ == "__main__":
    main()
