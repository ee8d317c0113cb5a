"""From a module of GPU kernels to PTX, and from PTX to machine code.

module --lower--> LLVM + NVVM dialect --to_llvm_ir--> text --llvmlite, NVPTX--> PTX --ptxas--> cubin
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvmlite
from abqc.codegen.llvm import initialize, lower, to_llvm_ir
from abqc.dialects.mlir import arith, ir, linkage, nvvm
from abqc.errors import CompileError, ToolchainError
from abqc.runtime.tensor_parameter import TensorParameter

from ..arch import GpuArch
from ..builder import BLOCKS, REGISTERS, SHARED, THREADS
from ..rolled_loops import annotate_branches
from .accesses import Access
from .dependent_launch import accesses_of, wait_for_others
from .tensor_parameters import accesses_of_slots, mark_tensor_parameters, move_tensor_parameters
from .tools import find_tool

TRIPLE = "nvptx64-nvidia-cuda"

LOWERING = ",".join(
    (
        "func.func(convert-linalg-to-loops,lower-affine)",
        "expand-strided-metadata",
        "lower-affine",
        "convert-scf-to-cf",
        "convert-vector-to-llvm",
        "convert-math-to-llvm",
        "func.func(arith-expand,memref-expand)",
        "convert-ub-to-llvm",
        "convert-index-to-llvm",
        "finalize-memref-to-llvm",
        "convert-arith-to-llvm",
        "convert-func-to-llvm",
        "convert-cf-to-llvm",
        "convert-nvvm-to-llvm",
        "reconcile-unrealized-casts",
        "canonicalize",
        "cse",
    )
)


@dataclass(frozen=True)
class LaunchShape:
    """What a launch of a kernel needs to know: threads a block, bytes of dynamic shared memory, by
    parameter what the kernel does with the memory there, and the tensor maps that follow these."""

    threads: int
    shared: int
    accesses: tuple[Access, ...]
    maps: tuple[TensorParameter, ...] = ()

    @property
    def parameters(self) -> int:
        return len(self.accesses)


@dataclass(frozen=True)
class Ptx:
    """PTX text of one target and its kernels, by name."""

    text: str
    arch: GpuArch
    kernels: dict[str, LaunchShape]


def compile_ptx(module: ir.Module, arch: GpuArch) -> Ptx:
    """Every function of `module` that has a number of threads, as a kernel; lowers it in place."""
    with module.context, ir.Location.unknown():
        shapes = _take_kernels(module)
        lower(module, LOWERING)
        kernels = _mark_kernels(module, shapes, arch)
        text = _keep_converged(to_llvm_ir(module))
    machine = _target_machine(arch)
    try:
        compiled = llvmlite.parse_assembly(text)
        compiled.triple = TRIPLE
        compiled.data_layout = str(machine.target_data)
        compiled.verify()
    except RuntimeError as error:
        raise CompileError(f"LLVM rejects the generated IR for {arch.name}: {error}") from error
    options = llvmlite.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvmlite.create_pass_builder(machine, options)
    builder.getModulePassManager().run(compiled, builder)
    return Ptx(machine.emit_assembly(compiled), arch, kernels)


@cache
def _target_machine(arch: GpuArch) -> llvmlite.TargetMachine:
    initialize()
    return llvmlite.Target.from_triple(TRIPLE).create_target_machine(
        cpu=arch.name, features=arch.llvm_features, opt=3
    )


Shape = tuple[int, int, tuple[TensorParameter, ...]]


def _take_kernels(module: ir.Module) -> dict[str, Shape]:
    """Threads, shared bytes and tensor maps of the kernels; their grid index becomes the block's
    number."""
    shapes = {}
    for op in module.body.operations:
        function = op.operation
        if function.name != "func.func" or THREADS not in function.attributes:
            continue
        name = ir.StringAttr(function.attributes["sym_name"]).value
        shared = function.attributes.get(SHARED)
        _index_by_block(function)
        shapes[name] = (
            ir.IntegerAttr(function.attributes[THREADS]).value,
            ir.IntegerAttr(shared).value if shared is not None else 0,
            move_tensor_parameters(function),
        )
    return shapes


def _index_by_block(function: ir.Operation) -> None:
    block = function.regions[0].blocks[0]
    with ir.InsertionPoint.at_block_begin(block):
        number = nvvm.BlockIdXOp().result
        index = arith.index_castui(ir.IndexType.get(), number)
    block.arguments[0].replace_all_uses_with(index)
    block.erase_argument(0)
    type_ = ir.TypeAttr(function.attributes["function_type"]).value
    function.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(list(type_.inputs)[1:], list(type_.results))
    )
    if "arg_attrs" in function.attributes:
        rest = list(ir.ArrayAttr(function.attributes["arg_attrs"]))[1:]
        function.attributes["arg_attrs"] = ir.ArrayAttr.get(rest)


def _mark_kernels(
    module: ir.Module, shapes: dict[str, Shape], arch: GpuArch
) -> dict[str, LaunchShape]:
    """Lowered functions of `shapes` become kernels, all others internal."""
    find_accesses = wait_for_others if arch.dependent_launch else accesses_of
    kernels = {}
    for op in module.body.operations:
        function = op.operation
        if function.name != "llvm.func" or not len(function.regions[0].blocks):
            continue
        annotate_branches(function)
        name = ir.StringAttr(function.attributes["sym_name"]).value
        if name not in shapes:
            function.attributes["linkage"] = linkage("internal")
            continue
        threads, shared, maps = shapes[name]
        function.attributes["nvvm.kernel"] = ir.UnitAttr.get()
        function.attributes["nvvm.reqntid"] = ir.DenseI32ArrayAttr.get([threads])
        if REGISTERS in function.attributes:
            function.attributes["nvvm.maxnreg"] = function.attributes[REGISTERS]
        if BLOCKS in function.attributes:
            function.attributes["nvvm.minctasm"] = function.attributes[BLOCKS]
        accesses = accesses_of_slots(find_accesses(function), maps)
        if maps:
            mark_tensor_parameters(function)
        kernels[name] = LaunchShape(threads, shared, accesses, maps)
    return kernels


# LLVM takes `mma` for a function of its operands and `ldmatrix` for a load, which may be done under
# a condition that only some lanes meet, and does not know what assembly does: of a loop it may make
# one for the lanes that meet a condition and one for the others. The hardware wants the whole warp
# for these and for all that is `.aligned`, as `bar.` is.
_CONVERGENT_CALLS = (
    re.compile(r"^(\s*%\S+ = call [^@]*@llvm\.nvvm\.(?:mma|ldmatrix)\..*\))(\s*)$", re.MULTILINE),
    re.compile(
        r'^([^"\n]* asm sideeffect "[^"]*(?:\.aligned|\bbar\.)[^"]*".*\))(\s*)$', re.MULTILINE
    ),
)


def _keep_converged(text: str) -> str:
    for call in _CONVERGENT_CALLS:
        text = call.sub(r"\1 convergent\2", text)
    return text


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel: registers a thread, static shared bytes, bytes of spills."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class MachineCode:
    """A cubin and what its kernels use, by name."""

    cubin: bytes
    resources: dict[str, Resources]


def assemble(ptx: str, arch: GpuArch) -> MachineCode:
    """Machine code by `ptxas`; ToolchainError where there is none, CompileError when it fails."""
    tool = find_tool("ptxas")
    if tool is None:
        raise ToolchainError("there is no ptxas", hint="pip install nvidia-cuda-nvcc")
    with tempfile.TemporaryDirectory(prefix="abqc-ptx-") as folder:
        source, output = Path(folder, "kernels.ptx"), Path(folder, "kernels.cubin")
        source.write_text(ptx)
        command = [str(tool), "-v", f"-arch={arch.name}", str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            kept = _keep(source)
            raise CompileError(
                f"ptxas rejects the kernels for {arch.name}: {done.stderr.strip()[:2000]}",
                hint=f"the PTX is in {kept}; repeat with: ptxas -arch={arch.name} {kept}",
            )
        return MachineCode(output.read_bytes(), _parse_resources(done.stderr))


def _keep(source: Path) -> Path:
    with tempfile.NamedTemporaryFile(
        "w", prefix="abqc-failed-", suffix=".ptx", delete=False
    ) as file:
        file.write(source.read_text())
    return Path(file.name)


def _parse_resources(log: str) -> dict[str, Resources]:
    resources, name, frame = {}, "", (0, 0, 0)
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name, frame = match[1], (0, 0, 0)
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := re.search(r"Used (\d+) registers", line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            resources[name] = Resources(int(match[1]), int(shared[1]) if shared else 0, *frame)
    return resources


def disassemble(cubin: bytes, *, labels: bool = False) -> dict[str, list[str]]:
    """The instructions of each kernel, by `nvdisasm`; ToolchainError where there is none.

    `labels`: between them the names that branches lead to, as "name:".
    """
    tool = find_tool("nvdisasm")
    if tool is None:
        raise ToolchainError("there is no nvdisasm", hint="pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"nvdisasm failed: {done.stderr.strip()[:2000]}")
    return _sections(done.stdout.splitlines(), labels)


_LINE = re.compile(r"(\.L\S+:)|\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;")  # a label, or an instruction


def _sections(lines: Sequence[str], labels: bool) -> dict[str, list[str]]:
    kernels: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        if match := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            current = kernels.setdefault(match[1].strip('"'), [])
        elif re.match(r"\s*\.section\s", line):
            current = None
        elif current is not None and (match := _LINE.match(line)) and (labels or match[2]):
            current.append(match[1] or match[2])
    return kernels
