"""Rewrites torch ops on weights into abq ops, between torch-mlir's contract and its conversions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .locations import node_name
from .plan import Plan, Weight


@dataclass(frozen=True)
class Used:
    """A use of a weight: under which symbol, as N x K or not, and by which kind of abq op."""

    weight: str
    symbol: str
    transposed: bool
    kind: str | None = None
    node: str | None = None


def take_weights(module: ir.Module, plan: Plan) -> list[Used]:
    """Replaces the arguments that are weights, leaving them unused; returns all uses."""
    function = module.body.operations[0]
    block = function.regions[0].blocks[0]
    first = len(block.arguments) - len(plan.weights)
    rewriter = _Rewriter(dict(zip(list(block.arguments)[first:], plan.weights, strict=True)))
    for op in list(_walk(block)):
        rule = RULES.get(op.name)
        if rule is not None:
            rule(rewriter, op)
    with ir.InsertionPoint.at_block_begin(block):
        for argument in rewriter.weights:
            rewriter.replace_plain(argument)
    return rewriter.used


def _walk(block: ir.Block) -> Iterator[ir.Operation]:
    for op in block.operations:
        yield op.operation
        for region in op.regions:
            for inner in region.blocks:
                yield from _walk(inner)


class _Rewriter:
    """Builds abq ops in place of torch ops; keeps the list of uses."""

    def __init__(self, weights: dict[ir.Value, Weight]) -> None:
        self.weights = weights
        self.used: list[Used] = []

    def weight(self, value: ir.Value, *, transposed: bool = False) -> ir.Value:
        """An `abq.weight` at the insertion point."""
        weight = self.weights[value]
        type_ = builtin_type(value.type)
        symbol = weight.symbol
        if transposed:
            symbol = weight.transposed
            type_ = ir.RankedTensorType.get(list(reversed(weight.shape)), type_.element_type)
        self.used.append(Used(weight.name, symbol, transposed))
        return abq.WeightOp(ir.StringAttr.get(symbol), type_).result

    def note(self, value: ir.Value, *, kind: str, node: str, transposed: bool = False) -> None:
        weight = self.weights[value]
        symbol = weight.transposed if transposed else weight.symbol
        self.used.append(Used(weight.name, symbol, transposed, kind, node))

    def replace_plain(self, argument: ir.Value) -> None:
        """What uses remain read the values as they are."""
        if any(True for _ in argument.uses):
            with ir.Location.name(self.weights[argument].name):
                plain = to_torch(self.weight(argument), argument.type)
            argument.replace_all_uses_with(plain)

    def vector(self, value: ir.Value, size: int) -> bool:
        """Whether `value` is a constant f32 vector of `size` elements."""
        if value not in self.weights and _defining(value) != "torch.vtensor.literal":
            return False
        type_ = builtin_type(value.type)
        return type_.shape == [size] and type_.element_type == ir.F32Type.get()

    def builtin(self, value: ir.Value) -> ir.Value:
        return self.weight(value) if value in self.weights else to_builtin(value)


def matmul(rewriter: _Rewriter, op: ir.Operation) -> None:
    """`torch.aten.matmul|mm x, w` with w a K x N weight, and the addition of a bias behind it."""
    x, w = op.operands[0], op.operands[1]
    if w not in rewriter.weights or not _is_f32(w, rank=2) or not _is_f32(x):
        return
    size = rewriter.weights[w].shape[1]
    addition = _only_user(op.results[0])
    bias = _added(rewriter, addition, op.results[0], size) if addition is not None else None
    last = addition if bias is not None else op
    assert last is not None
    node = node_name(op.location) or op.name
    with ir.InsertionPoint(last), op.location:
        bias_tensor = rewriter.builtin(bias) if bias is not None else None
        weight = rewriter.weight(w, transposed=True)
        result = abq.MatmulOp(
            to_builtin(x), weight, ir.StringAttr.get(node), builtin_type(last.results[0].type),
            bias=bias_tensor,
        ).result  # fmt: skip
        rewriter.note(w, kind="matmul", node=node, transposed=True)
        _replace(last, result)
    if last is not op:
        op.erase()


def gather(rewriter: _Rewriter, op: ir.Operation) -> None:
    """`torch.aten.index_select table, 0, indices`; negative indices are mended before it."""
    table, axis, indices = op.operands
    if table not in rewriter.weights or not _is_f32(table, rank=2) or _int(axis) != 0:
        return
    node = node_name(op.location) or op.name
    with ir.InsertionPoint(op), op.location:
        result = abq.GatherOp(
            rewriter.weight(table), to_builtin(indices), ir.StringAttr.get(node),
            builtin_type(op.results[0].type),
        ).result  # fmt: skip
        rewriter.note(table, kind="gather", node=node)
        _replace(op, result)


def convolution(rewriter: _Rewriter, op: ir.Operation) -> None:
    """`torch.aten.convolution` (not transposed) with a constant window."""
    x, w, bias, strides, pads, dilations, transposed, _, groups = op.operands
    if w not in rewriter.weights or not _is_f32(w) or not _is_f32(x):
        return
    if _int(transposed) != 0 or len(rewriter.weights[w].shape) < 3:
        return
    lists = [_ints(value) for value in (strides, dilations, pads)]
    group_count = _int(groups)
    if group_count is None or any(values is None for values in lists):
        return
    has_bias = _defining(bias) != "torch.constant.none"
    if has_bias and not rewriter.vector(bias, rewriter.weights[w].shape[0]):
        return
    stride, dilation, pad = (values or [] for values in lists)
    x, begins, ends = _unpadded(x, pad)
    node = node_name(op.location) or op.name
    with ir.InsertionPoint(op), op.location:
        result = abq.ConvOp(
            to_builtin(x), rewriter.weight(w), ir.StringAttr.get(node),
            ir.DenseI64ArrayAttr.get(stride), ir.DenseI64ArrayAttr.get(dilation),
            ir.DenseI64ArrayAttr.get(begins + ends),
            ir.IntegerAttr.get(ir.IntegerType.get_signless(64), group_count),
            builtin_type(op.results[0].type),
            bias=rewriter.builtin(bias) if has_bias else None,
        ).result  # fmt: skip
        rewriter.note(w, kind="conv", node=node)
        _replace(op, result)


def _unpadded(x: ir.Value, pads: list[int]) -> tuple[ir.Value, list[int], list[int]]:
    """Takes zeros that were written around `x` before into the convolution's own padding."""
    if _defining(x) != "torch.aten.constant_pad_nd":
        return x, pads, pads
    source, amounts, value = x.owner.operands
    known = _ints(amounts)
    # Pairs from the last axis on; only the spatial axes may be padded.
    if known is None or (len(known) > 2 * len(pads) and any(known[2 * len(pads) :])):
        return x, pads, pads
    if _float(value) != 0.0 or any(amount < 0 for amount in known):
        return x, pads, pads
    known = (known + [0] * (2 * len(pads)))[: 2 * len(pads)]
    begins = [pad + amount for pad, amount in zip(pads, known[-2::-2], strict=True)]
    ends = [pad + amount for pad, amount in zip(pads, known[-1::-2], strict=True)]
    return source, begins, ends


RULES: dict[str, Callable[[_Rewriter, ir.Operation], None]] = {
    "torch.aten.matmul": matmul,
    "torch.aten.mm": matmul,
    "torch.aten.index_select": gather,
    "torch.aten.convolution": convolution,
}


def to_builtin(value: ir.Value) -> ir.Value:
    return ir.Operation.create(
        "torch_c.to_builtin_tensor", [builtin_type(value.type)], [value]
    ).result


def to_torch(value: ir.Value, type_: ir.Type) -> ir.Value:
    return ir.Operation.create("torch_c.from_builtin_tensor", [type_], [value]).result


def builtin_type(type_: ir.Type) -> ir.RankedTensorType:
    """tensor<2x?xi64> for !torch.vtensor<[2,?],si64>: builtin tensors know no signs."""
    shape, element = str(type_).removeprefix("!torch.vtensor<[").removesuffix(">").split("]", 1)
    sizes = [
        ir.ShapedType.get_dynamic_size() if size == "?" else int(size)
        for size in shape.split(",")
        if size
    ]
    name = element.removeprefix(",").strip()
    if name.startswith(("si", "ui")):
        name = name[1:]
    return ir.RankedTensorType.get(sizes, ir.Type.parse(name))


def _replace(op: ir.Operation, result: ir.Value) -> None:
    op.results[0].replace_all_uses_with(to_torch(result, op.results[0].type))
    op.erase()


def _added(rewriter: _Rewriter, op: ir.Operation, product: ir.Value, size: int) -> ir.Value | None:
    """The constant vector of `size` that `op` adds to `product`, if that is all it does."""
    if op.name != "torch.aten.add.Tensor" or _int(op.operands[2]) != 1:
        return None
    if op.results[0].type != product.type:
        return None
    a, b, _ = op.operands
    other = b if a == product else a
    return other if rewriter.vector(other, size) else None


def _only_user(value: ir.Value) -> ir.Operation | None:
    users = [use.owner for use in value.uses]
    return users[0].operation if len(users) == 1 else None


def _defining(value: ir.Value) -> str:
    owner = value.owner
    return "" if isinstance(owner, ir.Block) else owner.name


def _is_f32(value: ir.Value, rank: int | None = None) -> bool:
    if not str(value.type).endswith(",f32>"):
        return False
    return rank is None or len(builtin_type(value.type).shape) == rank


def _int(value: ir.Value) -> int | None:
    """The value of a torch.constant.int or bool."""
    if _defining(value) not in ("torch.constant.int", "torch.constant.bool"):
        return None
    attribute = value.owner.attributes["value"]
    return int(attribute.value)


def _float(value: ir.Value) -> float | None:
    """The value of a torch.constant.float."""
    if _defining(value) != "torch.constant.float":
        return None
    return float(value.owner.attributes["value"].value)


def _ints(value: ir.Value) -> list[int] | None:
    """The values of a torch.prim.ListConstruct of constants."""
    if _defining(value) != "torch.prim.ListConstruct":
        return None
    items: Sequence[int | None] = [_int(item) for item in value.owner.operands]
    known = [item for item in items if item is not None]
    return known if len(known) == len(items) else None
