"""From MLIR to machine code: lowering, LLVM IR text, optimisation, objects, and a JIT for tests.

    kernel module --lower--> LLVM dialect --to_llvm_ir--> text --parse--> llvmlite --> object

`compile_kernels` walks that way for a module of grid functions and adds what the loader calls: a C
entry for each kernel, and a table of entries.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvmlite
import numpy as np

from ..dialects.element_types import text_of
from ..dialects.jit import load
from ..dialects.mlir import PointerType, ir, linkage, run_upstream, translate_module_to_llvmir
from ..errors import CompileError
from ..passes.kernels.launch import STREAMS
from .arithmetic.half_floats import lower_half_floats
from .booleans import move_booleans_as_bytes
from .isa import PLAIN, Isa

TRIPLE = "x86_64-unknown-linux-gnu"

LOWERING = ",".join(
    (
        "func.func(convert-linalg-to-loops,lower-affine,convert-vector-to-scf)",
        "expand-strided-metadata",
        "lower-affine",
        "convert-scf-to-cf",
        "convert-vector-to-llvm{enable-x86=true}",
        "convert-math-to-funcs{convert-ctlz=0}",  # integer powers
        "convert-math-to-llvm",
        "convert-math-to-libm",
        "func.func(arith-expand,memref-expand)",
        "convert-ub-to-llvm",
        "convert-index-to-llvm",
        "finalize-memref-to-llvm",
        "convert-arith-to-llvm",
        "convert-func-to-llvm",
        "convert-cf-to-llvm",
        "reconcile-unrealized-casts",
        "canonicalize",
        "cse",
    )
)


def lower(module: ir.Module, pipeline: str = LOWERING) -> None:
    """Lower a module of func, scf, memref, vector, math, ... to the LLVM dialect, in place."""
    run_upstream(pipeline, module.operation)


def to_llvm_ir(module: ir.Module) -> str:
    """A module of the LLVM dialect as text that llvmlite's LLVM can parse."""
    return rewrite_float_literals(translate_module_to_llvmir(module.operation))


# The bindings follow LLVM's main branch, which prints float literals in ways that LLVM 22 cannot
# read: `f0x3F800000` (the bits, in the width of the type), `+inf`, `-inf`, `nan`, and decimals.
_FLOAT_TOKENS = re.compile(
    r'"[^"]*"'
    r"|(?<![%@.\w])(half|bfloat|float|double)\b"
    r"|(?<=[\s(\[<])(f0x[0-9A-Fa-f]+|[+-]?(?:inf|q?nan|\d+\.\d+(?:[eE][+-]?\d+)?))(?=[\s,)\]>]|$)"
)


_FLOAT_TYPE = re.compile(r"half|bfloat|float|double")


def rewrite_float_literals(text: str) -> str:
    """LLVM IR with every float literal in LLVM 22's hexadecimal form.

    A literal has the float type that stands last before it on its line: `float 1.0`,
    `fadd float %x, 1.0`, `phi double [ 1.0, %a ], [ %y, %b ]`.
    """
    return "\n".join(
        _rewrite_line(line) if _FLOAT_TYPE.search(line) else line for line in text.split("\n")
    )


def _rewrite_line(line: str) -> str:
    type_ = ""

    def token(match: re.Match[str]) -> str:
        nonlocal type_
        type_ = match[1] or type_
        return _float_literal(type_, match[2]) if match[2] and type_ else match[0]

    return _FLOAT_TOKENS.sub(token, line)


def _float_literal(type_: str, text: str) -> str:
    """One literal as LLVM 22 reads it; a float is written as the double that equals it."""
    text = text.replace("qnan", "nan")
    if type_ == "half":
        bits = int(text[3:], 16) if text.startswith("f0x") else _bits("<e", "<H", float(text))
        return f"0xH{bits:04X}"
    if type_ == "bfloat":
        bits = int(text[3:], 16) if text.startswith("f0x") else _bfloat_bits(float(text))
        return f"0xR{bits:04X}"
    if type_ == "float":
        value = _float32(int(text[3:], 16)) if text.startswith("f0x") else float(np.float32(text))
        return f"0x{_bits('<d', '<Q', value):016X}"
    bits = int(text[3:], 16) if text.startswith("f0x") else _bits("<d", "<Q", float(text))
    return f"0x{bits:016X}"


def _bits(float_format: str, integer_format: str, value: float) -> int:
    return struct.unpack(integer_format, struct.pack(float_format, value))[0]


def _bfloat_bits(value: float) -> int:
    """Of the nearest bf16: decimals are printed short, and lie on either side of it."""
    bits = _bits("<f", "<I", value)
    return bits >> 16 if np.isnan(value) else (bits + 0x8000) >> 16


def _float32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


@cache
def initialize() -> None:
    llvmlite.initialize_all_targets()
    llvmlite.initialize_all_asmprinters()


def target_machine(isa: Isa, *, optimize: bool = True) -> llvmlite.TargetMachine:
    """LLVM's back end for `isa`: position-independent code, O2 or O0."""
    initialize()
    return llvmlite.Target.from_triple(TRIPLE).create_target_machine(
        cpu=isa.llvm_cpu,
        features=isa.feature_text,
        opt=2 if optimize else 0,
        reloc="pic",
        codemodel="default",
    )


def parse(text: str, machine: llvmlite.TargetMachine) -> llvmlite.ModuleRef:
    """LLVM IR text as a verified llvmlite module for `machine`."""
    try:
        module = llvmlite.parse_assembly(text)
        module.triple = TRIPLE
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"LLVM rejects the generated IR: {error}") from error
    return module


def optimize(module: llvmlite.ModuleRef, machine: llvmlite.TargetMachine) -> None:
    """LLVM's O2 pipeline with both vectorizers, in place."""
    options = llvmlite.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = True
    options.slp_vectorization = True
    options.loop_interleaving = True
    options.loop_unrolling = True
    builder = llvmlite.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


@dataclass(frozen=True)
class _Signature:
    """A lowered kernel: LLVM types of its arguments, the grid index first."""

    name: str
    types: tuple[str, ...]
    streams: bool  # stores are non-temporal

    @property
    def body(self) -> str:
        return f"{self.name}.body"


_LLVM_TYPES = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}


def functions(module: ir.Module) -> dict[str, ir.Operation]:
    """The functions of a module, lowered or not, by name."""
    return {
        ir.StringAttr(op.attributes["sym_name"]).value: op.operation
        for op in module.body.operations
        if op.operation.name in ("func.func", "llvm.func")
    }


def _signatures(module: ir.Module, names: Sequence[str]) -> list[_Signature]:
    """The kernels' argument types, after lowering; CompileError for a name that is not there."""
    lowered = functions(module)
    signatures = []
    for name in names:
        if name not in lowered:
            raise CompileError(f"the kernel module has no function '{name}'")
        type_ = ir.TypeAttr(lowered[name].attributes["function_type"]).value
        if type_.return_type != ir.Type.parse("!llvm.void", module.context):
            raise CompileError(f"kernel '{name}' must return nothing, it has type {type_}")
        streams = STREAMS in lowered[name].attributes
        signatures.append(_Signature(name, tuple(map(_llvm_type, type_.inputs)), streams))
    return signatures


def _llvm_type(type_: ir.Type) -> str:
    """How LLVM IR spells the type of a kernel's argument."""
    text = "ptr" if isinstance(type_, PointerType) else text_of(type_)
    return _LLVM_TYPES.get(text, text)


def _privatize(module: ir.Module, signatures: Sequence[_Signature]) -> None:
    """Every function becomes internal; kernels leave their names to their C entries."""
    bodies = {signature.name: signature.body for signature in signatures}
    with module.context:
        for op in module.body.operations:
            operation = op.operation
            if operation.name != "llvm.func" or not len(operation.regions[0].blocks):
                continue
            name = ir.StringAttr(operation.attributes["sym_name"]).value
            if name in bodies:
                operation.attributes["sym_name"] = ir.StringAttr.get(bodies[name])
            operation.attributes["linkage"] = linkage("internal")


def _entry(signature: _Signature) -> str:
    """`void name(int64_t begin, int64_t end, const uint64_t *args)` in LLVM IR."""
    lines = [
        f"define hidden void @{signature.name}(i64 %begin, i64 %end, ptr readonly %args) {{",
        "entry:",
    ]
    call = ["i64 %i"]
    for slot, type_ in enumerate(signature.types[1:]):
        lines.append(f"  %p{slot} = getelementptr i64, ptr %args, i64 {slot}")
        lines.append(f"  %a{slot} = load {type_}, ptr %p{slot}")
        call.append(f"{type_} %a{slot}")
    lines += [
        "  %some = icmp slt i64 %begin, %end",
        "  br i1 %some, label %loop, label %done",
        "loop:",
        "  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]",
        f"  call void @{signature.body}({', '.join(call)})",
        "  %next = add nsw i64 %i, 1",
        "  %more = icmp slt i64 %next, %end",
        "  br i1 %more, label %loop, label %done",
        "done:",
        *["  call void @llvm.x86.sse.sfence()"] * signature.streams,
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _table(symbol: str, names: Sequence[str]) -> str:
    entries = ", ".join(f"ptr @{name}" for name in names)
    return f"@{symbol} = hidden constant [{len(names)} x ptr] [{entries}]\n"


def kernels_to_llvm(
    module: ir.Module,
    isa: Isa,
    names: Sequence[str],
    table_symbol: str | None = None,
) -> tuple[llvmlite.ModuleRef, llvmlite.TargetMachine]:
    """The optimised LLVM module of `compile_kernels`; lowers `module` in place."""
    lower(module)
    move_booleans_as_bytes(module)
    signatures = _signatures(module, names)
    _privatize(module, signatures)
    text = to_llvm_ir(module)
    text += "".join(map(_entry, signatures))
    if any(signature.streams for signature in signatures):
        text += "declare void @llvm.x86.sse.sfence()\n"
    if table_symbol is not None:
        text += _table(table_symbol, names)
    machine = target_machine(isa)
    compiled = parse(text, machine)
    optimize(compiled, machine)
    return compiled, machine


def compile_kernels(
    module: ir.Module,
    isa: Isa,
    names: Sequence[str],
    table_symbol: str | None = None,
) -> bytes:
    """The ELF object of a module of grid functions; lowers `module` in place.

    It defines, hidden, the entry `void NAME(int64_t begin, int64_t end, const uint64_t *args)` for
    each of `names`, and `table_symbol`, the array of entries in the order of `names`.
    """
    compiled, machine = kernels_to_llvm(module, isa, names, table_symbol)
    return machine.emit_object(compiled)


def compile_table(names: Sequence[str], symbol: str) -> bytes:
    """The ELF object of `symbol`, hidden: an array of kernels' entries, which are elsewhere."""
    declarations = "".join(
        f"declare hidden void @{name}(i64, i64, ptr)\n" for name in dict.fromkeys(names)
    )
    machine = target_machine(PLAIN, optimize=False)
    return machine.emit_object(parse(declarations + _table(symbol, names), machine))


def kernel_assembly(module: ir.Module, isa: Isa, names: Sequence[str]) -> str:
    """The assembly of a module of grid functions, for people; lowers `module` in place."""
    compiled, machine = kernels_to_llvm(module, isa, names)
    return machine.emit_assembly(compiled)


class Jit:
    """Kernels of one module, loaded into this process: what tests and benchmarks call.

    jit = Jit(module, isa, ["scale"])
    jit.run("scale", grid, [x, 128])      # arrays become memrefs, ints index, floats f32
    """

    def __init__(self, module: ir.Module, isa: Isa, names: Sequence[str]) -> None:
        """Lowers `module` in place."""
        initialize()
        lower_half_floats(module, isa)
        self._code = load(compile_kernels(module, isa, names), names)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        self._entries = {name: prototype(self._code[name]) for name in names}

    def prepare(
        self, name: str, grid: int, arguments: Sequence[np.ndarray | int | float], begin: int = 0
    ) -> Callable[[], None]:
        """A function that runs kernel `name` for begin <= i < grid; it writes into the arrays."""
        slots = pack_arguments(arguments)
        entry = self._entries[name]
        # The closure keeps the arrays alive.
        return lambda keep=arguments: entry(begin, grid, slots.ctypes.data)  # type: ignore[misc]

    def run(
        self, name: str, grid: int, arguments: Sequence[np.ndarray | int | float], begin: int = 0
    ) -> None:
        """Run kernel `name` for begin <= i < grid; it writes into the arrays."""
        self.prepare(name, grid, arguments, begin)()


def pack_arguments(arguments: Sequence[np.ndarray | int | float]) -> np.ndarray:
    """A kernel's arguments as 8-byte slots: arrays as memrefs of their rank, int64, f32 bits."""
    slots: list[int] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            strides = [stride // argument.itemsize for stride in argument.strides]
            pointer = argument.ctypes.data
            slots += [pointer, pointer, 0, *argument.shape, *strides]
        elif isinstance(argument, float):
            slots.append(struct.unpack("<I", struct.pack("<f", argument))[0])
        else:
            slots.append(int(argument))
    return np.array([slot & (2**64 - 1) for slot in slots], dtype=np.uint64)
