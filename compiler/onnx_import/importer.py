"""The import of a model, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.errors import ModelError
from abqc.passes.diagnostics import explain
from onnx import NodeProto

from .assumptions import Assumptions, Undecided
from .building.emit import Builder
from .graph.check import check_model
from .graph.classifier_outputs import make_outputs_tensors
from .graph.fuse_conv import fuse_convolutions
from .graph.inline import inline_functions
from .graph.last_logits import keep_last_logits
from .graph.load import Initializers, load_model
from .graph.model import Model
from .graph.nameless import forget_marks
from .graph.pin import pin_shapes
from .graph.rounded_rows import rounded_rows, skip_straight_through
from .lowering import Lowering
from .result import ImportedModel
from .schemas import check_sizes
from .signature import Signature, finish, sized_by_inputs
from .values.constants import Constant
from .values.element_types import element_type, onnx_name
from .values.folding import Folder, constant_of
from .values.value import Value, constant_value
from .values.weights import Weights

Progress = Callable[[str], None]


def import_model(
    path: str | Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    work_dir: str | Path,
    progress: Progress | None = None,
    keep_codes: bool = False,
    last_logits: bool = False,
) -> ImportedModel:
    """The model in the ONNX file at `path` as linalg + abq.

    `shapes` pins the shapes of inputs, by name. `work_dir` must exist and live as long as the
    returned store. `progress` is called with the name of each step. With `keep_codes`, weights that
    the model holds as integers and scales are quantized tensors of the store, else what they mean
    in f32. With `last_logits`, output `logits` has those of the last token alone. Raises
    ModelError.
    """
    try:
        return _import(Path(path), shapes or {}, Path(work_dir), progress, keep_codes, last_logits)
    except UnicodeDecodeError as error:  # by whatever reads a name or an attribute first
        raise ModelError(f"{path} holds text that is not UTF-8: it is damaged") from error


def _import(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    work: Path,
    progress: Progress | None,
    keep_codes: bool,
    last_logits: bool,
) -> ImportedModel:
    report = progress or (lambda step: None)
    report("reading the model")
    model, initializers = load_model(path, work)
    inline_functions(model)
    notes = make_outputs_tensors(model)
    forget_marks(model)
    pin_shapes(model, shapes)
    check_model(model)
    take_constants(model)
    model.drop_dead_nodes()
    if last_logits:
        keep_last_logits(model)
    fuse_convolutions(model)
    skip_straight_through(model)
    report("lowering to linalg")
    result = lower(model, initializers, work, keep_codes)
    result.notes.extend(notes)
    return result


def lower(model: Model, initializers: Initializers, work: Path, keep_codes: bool) -> ImportedModel:
    """The model as IR, for the sizes with which it can be lowered and returns what it declares."""
    assumptions = Assumptions()
    failure: ModelError | None = None
    other_ranks: ImportedModel | None = None
    for attempt in itertools.count():
        directory = work / f"attempt{attempt}"
        directory.mkdir()
        assumptions.begin()
        try:
            result = _attempt(model, initializers, directory, keep_codes, assumptions)
        except Undecided:
            continue
        except ModelError as error:
            failure = failure or error
        else:
            if not assumptions.any or has_declared_ranks(model, result):
                return result
            other_ranks = other_ranks or result
        if not assumptions.reject():
            break
    if other_ranks is not None:
        return other_ranks
    assert failure is not None
    raise failure


def has_declared_ranks(model: Model, result: ImportedModel) -> bool:
    types = {output.name: output.type.tensor_type for output in model.shell.graph.output}
    return all(
        not types[output.name].HasField("shape")
        or len(types[output.name].shape.dim) == len(output.shape)
        for output in result.outputs
    )


def _attempt(
    model: Model,
    initializers: Initializers,
    work: Path,
    keep_codes: bool,
    assumptions: Assumptions,
) -> ImportedModel:
    weights = Weights(work / "weights", keep_codes=keep_codes)
    context = make_context()
    with context, ir.Location.unknown():
        module = ir.Module.create()
        builder = Builder(weights)
        versions = {opset.domain: opset.version for opset in model.shell.opset_import}
        folder = Folder(work / "folded")
        lowering = Lowering(
            builder, folder, versions, initializers, assumptions, rounded_rows(model)
        )
        signature = Signature(model.shell.graph)
        with ir.InsertionPoint(module.body):
            function, block = signature.open()
        with builder.block(block):
            for name, constant in model.constants.items():
                lowering.define(name, initializer(name, constant))
            with ir.Location.name("inputs"):
                for name, value in signature.bind(builder, block).items():
                    check_sizes(f"input '{name}'", value)
                    lowering.define(name, value)
            lowering.lower_nodes(model.nodes)
            builder.node = ""
            names = {spec.name for spec in signature.specs}
            with ir.Location.name("outputs"):
                results = _outputs(model, lowering)
                outputs = finish(builder, function, results, names)
        _verify(module)
    return ImportedModel(
        module=module,
        store=weights.store,
        inputs=signature.specs,
        outputs=outputs,
        nodes=weights.nodes,
        opset=model.declared_opset,
        producer=" ".join((model.shell.producer_name, model.shell.producer_version)).strip(),
        notes=builder.notes,
        sized_outputs=sized_by_inputs(results),
    )


def _verify(module: ir.Module) -> None:
    try:
        module.operation.verify()
    except ir.MLIRError as error:
        text, node = explain(error)
        raise ModelError(
            f"the importer made invalid IR ({text})",
            node=node,
            hint="this is a defect of abqc: report it with the types of the node's inputs",
        ) from error


def take_constants(model: Model) -> None:
    """Constant nodes are constants like initializers."""
    kept: list[NodeProto] = []
    for node in model.nodes:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            model.constants[node.output[0]] = constant_of(node)
        else:
            kept.append(node)
    model.nodes = kept


def initializer(name: str, constant: Constant) -> Value:
    dtype = element_type(constant.elem_type)
    if dtype is None:
        raise ModelError(f"initializer '{name}' is of a type that is not supported")
    return constant_value(constant, dtype)


def _outputs(model: Model, lowering: Lowering) -> list[tuple[str, Value]]:
    outputs = []
    types = {output.name: output.type.tensor_type.elem_type for output in model.shell.graph.output}
    for name in model.output_names:
        value = lowering.value(name)
        if not isinstance(value, Value):
            raise ModelError(
                f"output '{name}' is a sequence or an optional: only tensors are returned",
                hint="take the elements apart in the model, one output each",
            )
        declared = types.get(name, 0)
        if declared not in (0, value.dtype.onnx):
            raise ModelError(
                f"output '{name}' is declared as {onnx_name(declared)}, but is {value.dtype}"
            )
        outputs.append((name, value))
    return outputs
