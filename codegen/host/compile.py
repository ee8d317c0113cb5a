"""The host function: what remains of `@main` after the kernels have left, as an object.

It computes sizes, asks the shim for buffers and launches grid functions. It is long and straight,
so LLVM compiles it without optimization (docs/architecture.md, "Objects of an artifact").

Where kernels run on a GPU, device.py says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...dialects.mlir import ir
from ...errors import CompileError
from ...passes.guard_divisions import guard_all as guard_divisions
from ...passes.infrastructure import main_function
from ..arithmetic.half_floats import lower_half_floats
from ..isa import PLAIN
from ..llvm import lower, parse, target_machine, to_llvm_ir
from .claims import claim_outputs
from .device import DeviceHost, ask_for_weights
from .entry import MAX_RANK, define_appends, entry
from .launches import Host
from .llvm import allocate_from_arena, find_context_memory

# As codegen.llvm.LOWERING, for a module without vectors whose buffers come from the arena. After
# the first part all divisions of sizes are in plain sight.
_LOWER_AFFINE = ",".join(
    (
        "func.func(lower-affine,canonicalize,cse)",
        "expand-strided-metadata",
        "func.func(lower-affine,canonicalize,cse)",
    )
)
_LOWERING = ",".join(
    (
        "convert-scf-to-cf",
        "convert-math-to-funcs{convert-ctlz=0}",  # integer powers
        "convert-math-to-llvm",  # sizes computed in float (Resize)
        "convert-math-to-libm",
        "func.func(arith-expand,memref-expand)",
        "convert-ub-to-llvm",
        "convert-index-to-llvm",
        "finalize-memref-to-llvm{use-generic-functions=true use-aligned-alloc=true}",
        "convert-arith-to-llvm",
        "convert-func-to-llvm",
        "convert-cf-to-llvm",
        "reconcile-unrealized-casts",
        "canonicalize",  # two thirds of the text is descriptors taken apart again
        "cse",
    )
)


def compile_host(
    module: ir.Module,
    kernels: Sequence[str],
    kept_outputs: Sequence[int] | None = None,
    *,
    on_device: bool = False,
) -> bytes:
    """The ELF object of the host function; lowers `module` in place.

    `kernels` gives the number of each kernel: its place in the list. `kept_outputs` are the
    model's outputs that the function returns (None: all); the others are made by appending.
    `on_device`: buffers and kernels are a GPU's. The object defines
    `int32_t abqc_host_main(abqc_ctx *)`.
    """
    with module.context, ir.Location.unknown():
        types = ir.TypeAttr(main_function(module.operation).attributes["function_type"]).value
        inputs, outputs = list(types.inputs), list(types.results)
        _check_types([*inputs, *outputs])
        kept = list(range(len(outputs))) if kept_outputs is None else list(kept_outputs)
        host = (DeviceHost if on_device else Host)(module, kernels)
        host.rewrite()
        if not on_device:
            claim_outputs(host, kept)
    lower(module, _LOWER_AFFINE)
    with module.context, ir.Location.unknown():
        guard_divisions(module.operation)
        lower_half_floats(module, PLAIN)
    lower(module, _LOWERING)
    with module.context, ir.Location.unknown():
        context = allocate_from_arena(module)
        find_context_memory(module, context)
        if on_device:
            ask_for_weights(module, context)
        text = to_llvm_ir(module)
    text = define_appends(text)
    text += entry(inputs, list(zip(kept, outputs, strict=True)), text)
    machine = target_machine(PLAIN, optimize=False)
    compiled = parse(text, machine)
    for function in compiled.functions:
        # Not the weights: they go through the global offset table, because more than 2 GB of them
        # are out of reach of direct references. The linker relaxes what is near.
        if function.is_declaration:
            function.visibility = "hidden"
    return machine.emit_object(compiled)


def _check_types(types: Sequence[ir.Type]) -> None:
    for type_ in types:
        if not isinstance(type_, ir.MemRefType) or ir.MemRefType(type_).rank > MAX_RANK:
            raise CompileError(
                f"the model has an input or output of type {type_}",
                hint=f"tensors of at most {MAX_RANK} axes are supported",
            )
