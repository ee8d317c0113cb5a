"""The import of a model, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from abqc.dialects.weight_store import WeightStore
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from .check import check_model
from .constants import Constant
from .expand import expand_operators
from .fold import fold_constants
from .fuse_conv import fuse_convolutions
from .inline import inline_functions
from .load import load_model
from .merge_transposes import merge_transposes
from .model import SMALL, Model, infer_shapes
from .normalize import drop_identities, normalize
from .parent import lower_in_child
from .pin import pin_shapes
from .plan import Plan, Weight
from .quantized import Codes, as_codes
from .refuse import refuse_misread
from .result import ImportedModel, NodeInfo, TensorSpec
from .torch_to_abq import Used
from .upgrade import upgrade_opset

Progress = Callable[[str], None]


def import_model(
    path: str | Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    work_dir: str | Path,
    progress: Progress | None = None,
    keep_codes: bool = False,
) -> ImportedModel:
    """The model in the ONNX file at `path` as linalg + abq.

    `shapes` pins the shapes of inputs, by name. `work_dir` must exist and live as long as the
    returned store. `progress` is called with the name of each step. With `keep_codes`, weights that
    the model holds as integers and scales are quantized tensors of the store, else what they mean
    in f32. Raises ModelError.
    """
    report = progress or (lambda step: None)
    work = Path(work_dir)
    report("reading the model")
    model = load_model(Path(path), work)
    inline_functions(model)
    pin_shapes(model, shapes or {})
    check_model(model)
    prepare(model, work)
    report("lowering to linalg")
    plan = make_plan(model)
    proto = infer_shapes(model.to_proto([weight.name for weight in plan.weights]))
    bytecode, used = lower_in_child(proto, plan, work / "import", model.declared_opset)
    return ImportedModel(
        bytecode=bytecode,
        store=fill_store(model, used, work / "weights", keep_codes),
        inputs=[_spec(value) for value in model.shell.graph.input],
        outputs=[_spec(value) for value in proto.graph.output],
        nodes=_node_infos(model, plan, used),
        opset=model.declared_opset,
        producer=" ".join((model.shell.producer_name, model.shell.producer_version)).strip(),
    )


def prepare(model: Model, work: Path) -> None:
    """All rewrites on the ONNX side, in order."""
    model.drop_dead_nodes()
    model.drop_false_types()
    fold_constants(model, work)
    upgrade_opset(model)
    expand_operators(model)
    drop_identities(model)
    fold_constants(model, work)
    refuse_misread(model)
    merge_transposes(model)
    fuse_convolutions(model)
    normalize(model)
    fold_constants(model, work)  # what the rewrites left of quantized weights
    normalize(model)  # and what they made, such as a constant on the left
    model.infer_types()


def make_plan(model: Model) -> Plan:
    """Which constants leave the graph, and under which symbols."""
    symbols = {id(constant): name for name, constant in model.constants.items()}
    weights = []
    for name in weight_names(model):
        constant = model.constants[name]
        turned = f"{name}^T"
        if len(constant.shape) == 2:
            other = constant.transposed((1, 0))
            turned = symbols.get(id(other)) or other.name or turned
        weights.append(Weight(name, name, turned, constant.shape))
    inputs = model.shell.graph.input
    return Plan(
        weights=tuple(weights),
        op_types={node.name: node.op_type for node in model.nodes},
        inputs=tuple(value.name for value in inputs),
        symbols=tuple(
            tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim) for value in inputs
        ),
    )


def weight_names(model: Model) -> list[str]:
    """Large constants, and the weights of matmul, conv and gather nodes whatever their size."""
    used = model.use_counts()
    weights = {name for node in model.nodes for name in _weights_of(node)}
    return [
        name
        for name, constant in model.constants.items()
        if name in used and (constant.size > SMALL or (name in weights and constant.is_f32))
    ]


def _weights_of(node: NodeProto) -> list[str]:
    position = {"MatMul": 1, "Conv": 1, "Gather": 0}.get(node.op_type)
    return [] if position is None else [node.input[position]]


def fill_store(model: Model, used: list[Used], directory: Path, keep_codes: bool) -> WeightStore:
    """A store with the symbols that the IR refers to; their values are read on demand."""
    store = WeightStore(directory)
    coded = {use.symbol for use in used if use.kind is not None}
    for use in used:
        if use.symbol in store:
            continue
        constant = model.constants[use.weight]
        if use.transposed:
            constant = constant.transposed((1, 0))
        codes = as_codes(constant) if keep_codes and use.symbol in coded else None
        _add(store, use.symbol, constant, codes)
    return store


def _add(store: WeightStore, symbol: str, constant: Constant, codes: Codes | None) -> None:
    if codes is None:
        store.add_lazy(symbol, constant.shape, constant.dtype, constant.load)
    else:
        store.add_quantized(
            symbol, codes.codes, codes.scale, codes.zero, codes.scheme, shape=constant.shape
        )


def _node_infos(model: Model, plan: Plan, used: list[Used]) -> list[NodeInfo]:
    infos = []
    for use in used:
        if use.kind is None or use.node is None:
            continue
        shape = model.constants[use.weight].shape
        if use.transposed:
            shape = shape[::-1]
        op_type = plan.op_types.get(use.node, "")
        infos.append(NodeInfo(use.node, op_type, use.kind, use.symbol, shape))
    return infos


def _spec(value: ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype_name(tensor.elem_type), shape)


def dtype_name(elem_type: int) -> str:
    if elem_type == TensorProto.BFLOAT16:
        return "bfloat16"
    return helper.tensor_dtype_to_np_dtype(elem_type).name
