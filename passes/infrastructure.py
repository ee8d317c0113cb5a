"""What a pass is, and how a list of them runs.

A pass is a function `pass_(module, unit)` registered under the name of its file, or the text of an
upstream pipeline. `Unit` is the compilation that passes share: the weight store, the recipe, the
notes that end up in the manifest. A failing pass becomes a `PassFailure` that names the pass, the
one before it, and holds the IR that it was given.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from abqc.dialects.mlir import ir, run_upstream
from abqc.errors import AbqcError, CompileError, RecipeError

from .diagnostics import explain, named

if TYPE_CHECKING:
    from abqc.codegen.targets.target import DeviceTarget, Target

PassFunction = Callable[[ir.Operation, "Unit"], None]

REGISTRY: dict[str, PassFunction] = {}

# One file a pass; the name on the command line is the file's with dashes.
PASS_FILES = (
    "append_caches",
    "balance_channels",
    "check_sizes",
    "collapse_images",
    "collapse_reductions",
    "convert_arg_extreme",
    "convert_batch_matmul",
    "convert_max_pool",
    "convert_scan",
    "convert_selective_scan",
    "decompose_caches",
    "decompose_concat",
    "decompose_conv",
    "decompose_gather",
    "decompose_hadamard",
    "decompose_norm",
    "decompose_permute_channels",
    "decompose_update",
    "direct_code_conv",
    "direct_conv",
    "externalize_constants",
    "fill_constants",
    "fold_transposes",
    "forward_copies",
    "fuse_attention",
    "fuse_attention_pack",
    "fuse_bias",
    "fuse_caches",
    "fuse_concat",
    "fuse_epilogues",
    "fuse_norm",
    "fuse_norm_pack",
    "fuse_pack",
    "gate_planes",
    "gate_products",
    "guard_divisions",
    "guard_indices",
    "insert_fake_quantize",
    "insert_frees",
    "integer_only",
    "join_parts",
    "lower_abq",
    "merge_loops",
    "merge_products",
    "merge_rows",
    "outline_gpu_kernels",
    "outline_kernels",
    "outline_sequences",
    "outline_serial_code",
    "pack_layouts",
    "quantize",
    "quantize_caches",
    "read_codes",
    "resolve_dims",
    "rotate_stream",
    "scale_weights",
    "separate_fills",
    "share_heads",
    "simplify_broadcasts",
    "sink_transposes",
    "sort_channels",
    "split_invariants",
    "split_reductions",
    "store_copies",
    "version_loops",
    "write_appends",
)


@dataclass
class Unit:
    """One compilation: what passes read and write besides the IR."""

    store: Any = None
    recipe: Any = None
    target: Target | None = None  # None where passes ask it nothing
    node_kinds: dict[str, str] = field(default_factory=dict)  # ONNX node name -> "matmul", ...
    encodings: dict[str, Any] = field(default_factory=dict)  # weight symbol -> Encoding
    weights: dict[str, str] = field(default_factory=dict)  # object's symbol -> store's symbol
    kernels: dict[str, Any] = field(default_factory=dict)  # kernel name -> Kernel
    outlined: Any = None  # the module of grid functions made by outline-kernels, or its text
    progress: Callable[[str, int, int], None] | None = None
    on_pass: Callable[[str], None] | None = None  # hears the name of every pass before it runs
    inputs: list[Any] = field(default_factory=list)  # TensorSpec
    outputs: list[Any] = field(default_factory=list)
    kept_outputs: list[int] | None = None  # the outputs that @main still returns; None: all
    strided_inputs: set[str] = field(default_factory=set)  # inputs that may have any strides
    sized_outputs: frozenset[str] = frozenset()  # whose sizes follow from those of the inputs
    operations: list[dict[str, Any]] = field(default_factory=list)
    noise: dict[str, dict[str, Any]] = field(default_factory=dict)  # of packed weights, by symbol
    floats: list[dict[str, Any]] = field(default_factory=list)
    caches: list[dict[str, Any]] = field(default_factory=list)  # quantized ones, for the manifest
    scans: list[dict[str, Any]] = field(default_factory=list)  # selective ones, for the manifest
    notes: list[dict[str, str]] = field(default_factory=list)  # what users should know: node, note
    # Of an integer-only graph: "values" that integers give, "islands" that floats give.
    integers: Counter[str] = field(default_factory=Counter)
    strict: bool = False  # what a recipe asks for and cannot have is an error
    messages: list[str] = field(default_factory=list)  # of checks in kernels, by number
    dump_dir: Path | None = None
    step: int = 0

    @property
    def known_target(self) -> Target:
        assert self.target is not None
        return self.target

    @property
    def device_target(self) -> DeviceTarget:
        """The target, which is a GPU."""
        assert self.target is not None and self.target.objects.on_device
        return cast("DeviceTarget", self.target)

    def refuse(self, node: str, note: str) -> None:
        """Say that `node` cannot have what the recipe asks for. RecipeError if that is strict."""
        if self.strict:
            raise RecipeError(note, node=node, hint="leave out --strict to go on without")
        self.notes.append({"node": node, "note": note})

    def message_number(self, text: str) -> int:
        """The number of the message of a check in kernels, the same at every call."""
        if text not in self.messages:
            self.messages.append(text)
        return self.messages.index(text)

    def weight_name(self, symbol: str) -> str:
        """The name that a stored weight has in the object file, the same at every call."""
        for name, known in self.weights.items():
            if known == symbol:
                return name
        name = f"abqc_weight_{len(self.weights)}"
        self.weights[name] = symbol
        return name

    @property
    def outlined_text(self) -> str:
        """The grid functions made by outline-kernels, as text for another context."""
        if self.outlined is None:
            return "module {}"
        if isinstance(self.outlined, str):
            return self.outlined
        return self.outlined.operation.get_asm()


class PassFailure(CompileError):
    """The pass `name` failed; `before` is the text of the module that it was given."""

    def __init__(self, message: str, name: str, before: str, *, node: str | None = None) -> None:
        super().__init__(message, node=node)
        self.name = name
        self.before = before


def register(function: PassFunction) -> PassFunction:
    """Decorator: `def fuse_hadamard(module, unit)` becomes the pass `fuse-hadamard`."""
    REGISTRY[function.__name__.replace("_", "-")] = function
    return function


def find_pass(name: str) -> PassFunction | None:
    """Our pass of that name, whose file is imported now; None for the text of a pipeline."""
    file = name.replace("-", "_")
    if file in PASS_FILES:
        importlib.import_module(f"abqc.passes.{file}")
    return REGISTRY.get(name)


def available() -> dict[str, str]:
    """Our passes by name, with the first line of their documentation."""
    for name in PASS_FILES:
        find_pass(name.replace("_", "-"))
    return {
        name: (fn.__doc__ or "").strip().splitlines()[0] for name, fn in sorted(REGISTRY.items())
    }


def run_pass(module: ir.Operation, name: str, unit: Unit) -> None:
    """Run our pass `name`, or upstream pipeline text such as `func.func(canonicalize,cse)`.

    Raises MLIRError where the module is invalid afterwards.
    """
    ours = find_pass(name)
    if ours is None:
        run_upstream(name, module)
        return
    ours(module, unit)
    module.verify()


def run_pipeline(module: ir.Operation, names: Iterable[str], unit: Unit) -> None:
    """Run passes in order on a module.

    Raises PassFailure, or whatever other AbqcError a pass raises.
    """
    done: list[str] = []
    with module.context, ir.Location.unknown():
        for name in names:
            before = module.clone()  # which is quick; printing is not
            if unit.on_pass is not None:
                unit.on_pass(f"pass {name}")
            try:
                run_pass(module, name, unit)
            except AbqcError as error:
                if type(error) is not CompileError:
                    raise
                raise _failure(name, done, before, error) from error
            except Exception as error:
                raise _failure(name, done, before, error) from error
            done.append(name)
            if unit.dump_dir is not None:
                unit.step += 1
                label = name.split("{")[0].replace("func.func(", "").split(",")[0].strip(")")
                path = unit.dump_dir / f"{unit.step:03d}-{label}.mlir"
                path.write_text(module.get_asm())


def _failure(name: str, done: list[str], before: ir.Operation, error: Exception) -> PassFailure:
    text, node = explain(error)
    return PassFailure(
        f"pass {name} failed: {text}; it ran after {done[-1] if done else 'no other pass'}",
        name,
        before.get_asm(),
        node=node,
    )


def walk(root: ir.Operation, name: str | None = None) -> list[ir.Operation]:
    """All operations below `root` in order, or those of one name; rewriting meanwhile is safe."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if name is None or op.name == name:
            found.append(op)
        return ir.WalkResult.ADVANCE

    root.walk(visit, ir.WalkOrder.PRE_ORDER)
    return found


def main_function(module: ir.Operation) -> ir.Operation:
    """The host function `@main`."""
    for op in module.regions[0].blocks[0].operations:
        if (
            op.operation.name == "func.func"
            and ir.StringAttr(op.attributes["sym_name"]).value == "main"
        ):
            return op.operation
    raise CompileError("the module has no function @main")


def users(value: ir.Value) -> Iterator[ir.Operation]:
    for use in value.uses:
        yield use.owner


def is_used(value: ir.Value) -> bool:
    return any(True for _ in value.uses)


def operand_segments(op: ir.Operation) -> list[int]:
    """How many operands each named operand of an operation has that says so (those of a
    linalg.generic: what it reads, and what it writes)."""
    return list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))


def defining_op(value: ir.Value) -> ir.Operation | None:
    """The operation that makes a value, None for block arguments."""
    owner = value.owner
    return None if isinstance(owner, ir.Block) else owner.operation


def node_name(op: ir.Operation) -> str | None:
    """The ONNX node that an operation comes from, the first one where several were fused."""
    return named(op.location)


def blame(op: ir.Operation) -> str:
    """How the message of a check at run time begins."""
    name = node_name(op)
    return f"node '{name}'" if name else "the model"


def constant_index(value: ir.Value) -> int | None:
    """The integer behind an `arith.constant`, None for other values."""
    owner = defining_op(value)
    if owner is None or owner.name != "arith.constant":
        return None
    attribute = owner.attributes["value"]
    return ir.IntegerAttr(attribute).value if isinstance(attribute, ir.IntegerAttr) else None
