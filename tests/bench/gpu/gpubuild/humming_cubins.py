"""humming's kernels as cubins, compiled where there is no GPU: for gpukit/peer_humming.py.

    python humming_cubins.py FOLDER

Needs nvcc 13.0, PyTorch with CUDA (2.11 or later) and humming-kernels, and no GPU: tensors are fake
ones, launches do nothing, and the device is described by a table. Writes FOLDER/humming.json and
FOLDER/humming_cubins.tar.xz.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from gpukit import peer_humming as peer  # noqa: E402
from gpukit import peers  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402

CLOCK = 1_980_000  # kHz
OPS = 132 * 4096 * CLOCK / 1e9
H200 = SimpleNamespace(
    index=0,
    name="NVIDIA H200",
    is_ppu=False,
    sm_count=132,
    max_threads_per_block=1024,
    max_threads_per_sm=2048,
    max_registers_per_sm=65536,
    sm_major=9,
    sm_minor=0,
    sm_version=90,
    l2_cache_size=60 << 20,
    l2_cache_size_mb=60.0,
    l1_cache_size=256 << 10,
    l1_cache_size_kb=256.0,
    default_smem_size=48 << 10,
    max_smem_size=227 << 10,
    max_smem_size_kb=227.0,
    memory_clock_khz=3_201_000,
    memory_bus_width=6144,
    sm_clock_khz=CLOCK,
    memory_bandwidth_gbps=3_201_000 * 2 * 6144 / 8 / 1e6,
    tensorcore_tops={
        "float16": OPS,
        "bfloat16": OPS,
        "float8e4m3": 2 * OPS,
        "float8e5m2": 2 * OPS,
        "int8": 2 * OPS,
        "int4": 4 * OPS,
    },
)


class Described:
    """Stands for `torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *arguments: object) -> None:
        pass


class NoTensor:
    """Stands for the class of fake tensors, so that humming makes their kernels."""


def pretend() -> None:
    """Everything that asks for a GPU gets an answer."""
    torch.cuda.current_device = lambda: 0
    torch.cuda.device = Described
    from humming import ops
    from humming.device import DeviceInfo

    DeviceInfo._get_value = lambda self: H200
    DeviceInfo.__new__ = staticmethod(lambda cls, index=None: _info(cls))
    import humming.kernel.humming
    import humming.ops.gemm
    import humming.ops.input
    import humming.ops.utils
    import humming.ops.weight

    for module in (humming.ops.gemm, humming.ops.input, humming.ops.utils, humming.ops.weight):
        module.FakeTensor = NoTensor
        if hasattr(module, "init_humming_launcher"):
            module.init_humming_launcher = lambda: None
    for name in dir(humming.ops.weight):
        kernel = getattr(humming.ops.weight, name)
        if name.endswith("Kernel"):
            kernel.__call__ = lambda self, *arguments, **options: None
    counter = iter(range(1_000_000))
    ops.register_kernel = lambda path: (next(counter), "humming")
    ops.register_process_input_kernel = lambda path: (next(counter), "process_input_kernel")
    from humming.schema import HummingWeightSchema

    HummingWeightSchema.convert_symmetric_integer_weight = _looked_at


def _info(cls: Any) -> Any:
    instance = object.__new__(cls)
    instance._index, instance._value = 0, H200
    return instance


def _looked_at(self: Any, tensors: Any, allow_inplace: bool = False) -> Any:
    """The check whether there is a lowest code, of which random weights always have one."""
    from humming import ops

    bits = self.b_dtype.num_bits
    if bits >= 2:
        ops.convert_weight(
            tensors["weight"], f"uint{bits}", f"float{bits}e0m{bits - 1}", check_only=True
        )
    return self, tensors


def record(target: Path) -> dict[str, str]:
    """Every kernel that is compiled from now on is kept: digest -> file."""
    from humming.jit.compiler import NVCCCompiler
    from humming.jit.runtime import KernelRuntime

    found: dict[str, str] = {}

    class Recorder(NVCCCompiler):
        @classmethod
        def compile(cls, code: str, *arguments: Any, **options: Any) -> str:
            path = NVCCCompiler.compile(code, *arguments, **options)
            key = peer.digest(code, options.get("kernel_expr"))
            found[key] = f"{key}.cubin"
            shutil.copy(path, target / found[key])
            return path

    KernelRuntime._get_compiler = staticmethod(lambda: Recorder)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    schedules: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cubins:
        pretend()
        found = record(Path(cubins))
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            for case, (k, n) in _products():
                _case(case, n, k, schedules)
        with tarfile.open(folder / peer.CUBINS, "w:xz") as archive:
            archive.add(cubins, ".")
    plan = {"cubins": found, "schedules": schedules}
    (folder / peer.PLAN).write_text(json.dumps(plan, indent=1))


def _products() -> list[tuple[Any, tuple[int, int]]]:
    """Cases and their (K, N)."""
    turns = [turn for turn in peers.TURNS if turn.peer is peer.Humming]
    return [(case, shape) for turn in turns for case in turn.cases for shape in turn.shapes]


def _case(case: Any, n: int, k: int, schedules: dict[str, Any]) -> None:
    from humming.kernel.humming import HummingKernel
    from humming.ops import input as inputs

    bits, rows = case.bits
    layer = peer.make_layer(torch, case, n, k)
    groups = k // case.group if case.group else 1
    layer.weight = torch.nn.Parameter(
        torch.empty(n, k * bits // 32, dtype=torch.int32, device="cuda"), requires_grad=False
    )
    layer.weight_scale = torch.nn.Parameter(
        torch.empty(n, groups, dtype=torch.float16, device="cuda"), requires_grad=False
    )
    layer.transform()
    config = layer.humming_config
    for m in peers.ROWS:
        key = peer.case_key(case, n, k, m)
        schedules[key] = peer.schedule(layer, m)
        HummingKernel.prepare_kernels(config.to_str(), None, json.dumps(schedules[key]), 0)
        print(key, schedules[key], flush=True)
    if rows != 16:
        x = torch.empty(16, k, dtype=torch.float16, device="cuda")
        inputs._prepare_process_input_op(
            x, quant_mode=config.input_quant_mode.value, quant_dtype=config.a_dtype.dtype_str
        )


if __name__ == "__main__":
    main()
