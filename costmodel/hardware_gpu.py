"""GPUs as data: what a multiprocessor (SM) computes per cycle, and how memory feeds it.

Rates are operations per SM and cycle; a multiply-add is two. Tensor rates are those of `mma.sync`,
but for those called `wgmma`. Where a comment says "datasheet", the rate is the datasheet's dense
peak divided by SMs and clock; "guide" is the CUDA C++ Programming Guide (throughput of arithmetic
instructions). "Assumed" means that nobody has measured it for us yet:
`abqc tune` corrects what follows from it.

[D] github.com/markdewing/AI_kernels, latency/README.md: latencies in cycles.
[P] "CUDA Performance Study - NVIDIA H100 SXM5", microbenchmarks on GitHub, at 1.98 GHz.
[L] Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
Microbenchmarking", 2024 (arXiv:2402.13499). The one figure from it, that `mma.sync` reaches 62.9 %
of Hopper's peak on average, was not looked up again for this table; measure it first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import CompileError
from ..runtime.gpu_limits import GpuLimits, limits_of

MIB = 1 << 20
GIGA, TERA = 1e9, 1e12
NANO, MICRO = 1e-9, 1e-6


@dataclass(frozen=True)
class Gpu(GpuLimits):
    """One GPU. `rates` are keyed by unit; a unit that is missing is not native there.

    b1, s8, f16   `mma.sync`; f16 with f32 accumulators
    wgmma_b1, wgmma_s8, wgmma_f16   the same by `wgmma`
    f32, dp4a, alu, special   CUDA cores: flops; byte products; shifts, logic, additions; MUFU
    issue         instructions of threads
    shared        bytes between shared memory and registers
    l2            bytes between L2 and the SM

    Bandwidths are bytes per second of the whole GPU, latencies those of an idle memory. A launch
    inside of a CUDA graph costs `graph_launch_seconds`, on a stream `launch_seconds`.
    """

    name: str
    arch: str
    sms: int
    clock: float  # Hz
    rates: dict[str, float]
    dram_datasheet: float
    dram_bandwidth: float  # sustained
    dram_latency: float
    l2_bytes: int
    l2_bandwidth: float
    l2_latency: float
    launch_seconds: float = 2.5 * MICRO  # assumed
    # Measured on an H200: the shortest kernels take 3.3 us in a graph, 0.5 us of it a node alone.
    graph_launch_seconds: float = 1.7 * MICRO

    def rate(self, unit: str) -> float:
        """Operations per second of one SM; CompileError where the unit is not native."""
        if unit not in self.rates:
            raise CompileError(f"{self.name} ({self.arch}) has no native {unit} instruction")
        return self.rates[unit] * self.clock


# Guide: per SM and cycle, 64 FMA, 64 integer additions or logic operations, 64 dp4a (8 operations
# each), 16 special functions, 32 banks of 4 bytes.
_CORES = {"f32": 128.0, "dp4a": 512.0, "alu": 64.0, "special": 16.0, "shared": 128.0}
_CORES["issue"] = 128.0  # four schedulers, one instruction of a warp in a cycle each
_CORES["l2"] = 64.0  # assumed: the port of an SM is 64 bytes wide

T4 = Gpu(
    name="T4",
    arch="sm_75",
    sms=40,  # datasheet
    clock=1.59 * GIGA,  # datasheet
    # Datasheet: 65 TFLOPS f16, 130 TOPS int8. `and.popc` does not exist here.
    rates=_CORES | {"s8": 2048.0, "f16": 1024.0},
    dram_datasheet=320 * GIGA,
    dram_bandwidth=240 * GIGA,  # assumed: 75 %
    dram_latency=350 * NANO,  # assumed
    l2_bytes=4 * MIB,
    l2_bandwidth=1.27 * TERA,  # assumed: 20 bytes a cycle and SM
    l2_latency=120 * NANO,  # assumed
    **vars(limits_of((7, 5))),
)

A100 = Gpu(
    name="A100",
    arch="sm_80",
    sms=108,
    clock=1.41 * GIGA,
    # Datasheet: 312 TFLOPS f16, 624 TOPS int8, 4,992 TOPS binary (4,950 measured); mma.sync reaches
    # them.
    rates=_CORES | {"b1": 32768.0, "s8": 4096.0, "f16": 2048.0},
    dram_datasheet=2039 * GIGA,  # 80 GB, SXM
    dram_bandwidth=1750 * GIGA,  # assumed: 86 % of it
    dram_latency=330 * NANO,  # assumed
    l2_bytes=40 * MIB,
    l2_bandwidth=4.5 * TERA,  # assumed; whitepaper: 5,120 bytes a cycle, 7.2 TB/s
    l2_latency=185 * NANO,  # assumed: 260 cycles, as [P] on an H100
    **vars(limits_of((8, 0))),
)

A10 = Gpu(
    name="A10",
    arch="sm_86",
    sms=72,
    clock=1.695 * GIGA,
    # Datasheet: 125 TFLOPS f16, 250 TOPS int8, 31.2 TFLOPS f32. Binary: 8 times int8, as on A100.
    rates=_CORES | {"f32": 256.0, "b1": 16384.0, "s8": 2048.0, "f16": 1024.0},
    dram_datasheet=600 * GIGA,
    dram_bandwidth=510 * GIGA,  # assumed: 85 %
    dram_latency=330 * NANO,  # assumed: as A100
    l2_bytes=6 * MIB,
    l2_bandwidth=2.0 * TERA,  # assumed
    l2_latency=150 * NANO,  # assumed
    **vars(limits_of((8, 6))),
)

RTX_3090 = replace(
    A10,
    name="RTX 3090",
    sms=82,
    # Whitepaper GA102: 71 TFLOPS f16 with f32 accumulators, 284 TOPS int8, both at 1,695 MHz.
    rates=A10.rates | {"f16": 512.0},
    dram_datasheet=936 * GIGA,
    dram_bandwidth=800 * GIGA,  # assumed: 85 %
)

RTX_4090 = Gpu(
    name="RTX 4090",
    arch="sm_89",
    sms=128,
    clock=2.52 * GIGA,
    # Whitepaper AD102: 165.2 TFLOPS f16 with f32 accumulators, 660.6 TOPS int8, 82.6 TFLOPS f32.
    # Binary: 8 times int8, as on A100.
    rates=_CORES | {"f32": 256.0, "b1": 16384.0, "s8": 2048.0, "f16": 512.0},
    dram_datasheet=1008 * GIGA,
    dram_bandwidth=920 * GIGA,  # assumed: 91 %
    dram_latency=252 * NANO,  # [D]: 636 cycles
    l2_bytes=72 * MIB,
    l2_bandwidth=4.0 * TERA,  # assumed
    l2_latency=117 * NANO,  # [D]: 296 cycles
    **vars(limits_of((8, 9))),
)

L4 = replace(
    RTX_4090,
    name="L4",
    sms=58,
    clock=2.04 * GIGA,
    # Datasheet: 121 TFLOPS f16, 242 TOPS int8.
    rates=RTX_4090.rates | {"f16": 1024.0},
    dram_datasheet=300 * GIGA,
    dram_bandwidth=260 * GIGA,  # assumed: 87 %
    l2_bytes=48 * MIB,
    l2_bandwidth=1.8 * TERA,  # assumed
)

H200 = Gpu(
    name="H200",
    arch="sm_90a",
    sms=132,
    clock=1.98 * GIGA,  # at most, and at rest
    rates=_CORES
    | {
        "f32": 256.0,  # datasheet: 67 TFLOPS at 1.98 GHz
        # Measured by the kit (docs/benchmarks.md): 10,360 TOPS of m16n8k256, 7,735 of m16n8k128.
        "b1": 39640.0,
        # Measured: 1,290 TOPS and 651 TFLOPS, 65 % of the datasheet's for wgmma.
        "s8": 4936.0,
        "f16": 2490.0,
        # Measured: 15,400 and 1,840 TOPS, 811 TFLOPS (below the datasheet's by the clock under such
        # load).
        "wgmma_b1": 58920.0,
        "wgmma_s8": 7040.0,
        "wgmma_f16": 3103.0,
    },
    dram_datasheet=4.8 * TERA,
    dram_bandwidth=4.2 * TERA,  # measured: copied, by a kernel 4.08, by the driver 4.24
    dram_latency=288 * NANO,  # [P]: 570 cycles; [D], a GH200: 690 cycles
    l2_bytes=50 * MIB,
    l2_bandwidth=5.6 * TERA,  # copied, measured
    l2_latency=131 * NANO,  # [P]: 260 cycles; [D], a GH200: 281 cycles
    **vars(limits_of((9, 0))),
)

H100 = replace(
    H200,
    name="H100",
    dram_datasheet=3.35 * TERA,
    dram_bandwidth=3.0 * TERA,  # assumed: as much of it as an H200
)

B200 = Gpu(
    name="B200",
    arch="sm_100a",
    sms=148,
    clock=1.85 * GIGA,
    # Datasheet: 2.25 PFLOPS f16, 4.5 POPS int8, by tcgen05. mma.sync: assumed to do what it does on
    # Hopper. There is no binary unit.
    rates=_CORES | {"f32": 256.0, "s8": 5080.0, "f16": 2540.0},
    dram_datasheet=8.0 * TERA,
    dram_bandwidth=7.1 * TERA,  # assumed: 89 %
    dram_latency=465 * NANO,  # [D]: 860 cycles
    l2_bytes=126 * MIB,
    l2_bandwidth=9.0 * TERA,  # assumed
    l2_latency=159 * NANO,  # [D]: 295 cycles
    **vars(limits_of((10, 0))),
)

RTX_5090 = Gpu(
    name="RTX 5090",
    arch="sm_120a",
    sms=170,
    clock=2.41 * GIGA,
    # Whitepaper GB202: 209.5 TFLOPS f16 with f32 accumulators, 838 TOPS int8 (931 by mma.sync
    # m16n8k32 at a higher clock, measured in pull request 254 of github.com/kekzl/imp); as many
    # integer as f32 cores. No binary unit.
    rates=_CORES | {"f32": 256.0, "alu": 128.0, "s8": 2048.0, "f16": 512.0},
    dram_datasheet=1792 * GIGA,
    dram_bandwidth=1600 * GIGA,  # assumed: 89 %
    dram_latency=388 * NANO,  # [D]: 936 cycles
    l2_bytes=96 * MIB,
    l2_bandwidth=5.0 * TERA,  # assumed
    l2_latency=149 * NANO,  # [D]: 360 cycles
    **vars(limits_of((12, 0))),
)

# The first GPU of an architecture stands for it.
GPUS = (T4, A100, A10, RTX_3090, RTX_4090, L4, H200, H100, B200, RTX_5090)
