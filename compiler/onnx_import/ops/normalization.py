"""Normalizations of rows: layer norms and RMS norms, with what onnxruntime fuses into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.shaping import reshape
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import F32, F64, I32, ElementType
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value


@dataclass(frozen=True)
class Normalized:
    """The result and, where they were asked for, mean and 1 / standard deviation of each row."""

    y: Value
    mean: Value | None = None
    inverse: Value | None = None


def normalize(
    b: Builder,
    x: Value,
    axis: int,
    epsilon: float,
    *,
    kind: str,
    weight: Value | None,
    bias: Value | None,
    statistics: bool = False,
) -> Normalized:
    """`x` normalized over the axes from `axis` on; `kind` is "layer" or "rms".

    One `abq.norm` where rows are f32 of a known length and weight and bias are vectors of it.
    """
    lead, row = x.dims[:axis], x.dims[axis:]
    columns = product(row)
    vectors = [v for v in (weight, bias) if v is not None]
    plain = all(_is_row(v, row) for v in vectors)
    number = columns.value
    if not statistics and plain and number is not None and number > 1 and _is_f32(x.dtype):
        return Normalized(_one_op(b, x, lead, columns, epsilon, kind, weight, bias))
    return _loops(b, x, axis, epsilon, kind, weight, bias)


def _is_f32(dtype: ElementType) -> bool:
    return dtype.is_float and dtype is not F64


def _is_row(vector: Value, row: Sequence[Dim]) -> bool:
    """Whether a weight has one element for each column, and no axes but theirs."""
    dims = list(vector.dims)
    while len(dims) > len(row) and dims[0] == ONE:
        dims.pop(0)
    return dims == list(row) and _is_f32(vector.dtype)


def _one_op(
    b: Builder,
    x: Value,
    lead: Sequence[Dim],
    columns: Dim,
    epsilon: float,
    kind: str,
    weight: Value | None,
    bias: Value | None,
) -> Value:
    rows = reshape(b, x, [*lead, columns])
    flat = [None if v is None else b.tensor(reshape(b, v, [columns])) for v in (weight, bias)]
    type_ = b.type(x.dtype, rows.dims)
    op = abq.NormOp(
        b.tensor(rows),
        ir.StringAttr.get(kind),
        ir.FloatAttr.get(ir.F32Type.get(), epsilon),
        type_,
        type_,
        weight=flat[0],
        bias=flat[1],
    )
    return reshape(b, Value(x.dtype, rows.dims, ssa=op.result), x.dims)


def _loops(
    b: Builder,
    x: Value,
    axis: int,
    epsilon: float,
    kind: str,
    weight: Value | None,
    bias: Value | None,
) -> Normalized:
    """Any type, any length of rows, weights of any shape that can be broadcast to x."""
    axes = range(axis, x.rank)
    columns = b.scalar(product(x.dims[axis:])).cast(x.dtype)
    mean, centered = None, x
    if kind == "layer":
        (total,) = b.reduce([x], axes, [(x.dtype, 0)], lambda v, a: [v + a], keepdims=True)
        mean = b.elementwise([total], x.dtype, lambda v: v / columns)
        centered = b.elementwise([x, mean], x.dtype, lambda v, m: v - m)
    (squares,) = b.reduce([centered], axes, [(x.dtype, 0)], lambda v, a: [v * v + a], keepdims=True)
    inverse = b.elementwise([squares], x.dtype, lambda q: (q / columns + epsilon).rsqrt())
    y = b.elementwise([centered, inverse], x.dtype, lambda c, i: c * i)
    if weight is not None:
        y = b.elementwise([y, weight], x.dtype, lambda v, w: v * w.cast(x.dtype))
    if bias is not None:
        y = b.elementwise([y, bias], x.dtype, lambda v, w: v + w.cast(x.dtype))
    return Normalized(y, mean, inverse)


def _statistics(node: Node, value: Value | None) -> Value | None:
    """Mean or inverse deviation in the type that `stash_type` gives."""
    if value is None:
        return None
    dtype = node.type_of("stash_type", F32.onnx)
    return value if dtype == value.dtype else node.b.elementwise([value], dtype, _same(dtype))


def _same(dtype: ElementType):  # type: ignore[no-untyped-def]
    return lambda v: v.cast(dtype)


@lowers("LayerNormalization", since=1)
def layer_normalization(node: Node) -> list[Value | None]:
    x = node.input(0)
    axis = node.axis("axis", x.rank, -1)
    wanted = node.wants(1) or node.wants(2)
    made = normalize(
        node.b, x, axis, node.float("epsilon", 1e-5), kind="layer",
        weight=node.optional(1), bias=node.optional(2), statistics=wanted,
    )  # fmt: skip
    return [made.y, _statistics(node, made.mean), _statistics(node, made.inverse)]


@lowers("RMSNormalization")
def rms_normalization(node: Node) -> Value:
    x = node.input(0)
    axis = node.axis("axis", x.rank, -1)
    return normalize(
        node.b, x, axis, node.float("epsilon", 1e-5), kind="rms",
        weight=node.optional(1), bias=None,
    ).y  # fmt: skip


@lowers("SimplifiedLayerNormalization")
@lowers("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(node: Node) -> list[Value | None]:
    """onnxruntime's RMS norm (it stands in ONNX's own domain in published models)."""
    x = node.input(0)
    made = normalize(
        node.b, x, node.axis("axis", x.rank, -1), node.float("epsilon", 1e-5), kind="rms",
        weight=node.optional(1), bias=None, statistics=node.wants(1),
    )  # fmt: skip
    return [made.y, _statistics(node, made.inverse)]


@lowers("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(node: Node) -> list[Value | None]:
    """Inputs: x, skip, gamma, beta, bias. Outputs: y, mean, inverse deviation, the sum."""
    return _with_skip(node, "layer", beta=node.optional(3), bias=node.optional(4), default=1e-12)


@lowers("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(node: Node) -> list[Value | None]:
    """Inputs: x, skip, gamma, bias. Outputs as those of SkipLayerNormalization."""
    return _with_skip(node, "rms", beta=None, bias=node.optional(3), default=1e-12)


def _with_skip(
    node: Node, kind: str, *, beta: Value | None, bias: Value | None, default: float
) -> list[Value | None]:
    x = node.input(0)
    total = node.b.elementwise([x, node.input(1)], x.dtype, lambda v, s: v + s)
    if bias is not None:
        total = node.b.elementwise([total, bias], x.dtype, lambda v, w: v + w)
    made = normalize(
        node.b, total, x.rank - 1, node.float("epsilon", default), kind=kind,
        weight=node.input(2), bias=beta, statistics=node.wants(1) or node.wants(2),
    )  # fmt: skip
    return [made.y, made.mean, made.inverse, total]


@lowers("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(node: Node) -> list[Value | None]:
    """The embeddings of a BERT: words, positions and segments added, then normalized.

    Inputs: input_ids [B, S], segment_ids, three tables, gamma, beta, mask [B, S], position_ids.
    Outputs: y, the number of ones in each row of the mask (i32), the sum before the norm.
    """
    from .indexing import gather_rows

    b, ids = node.b, node.input(0)
    words = gather_rows(node, node.input(2), ids)
    positions = node.optional(8)
    if positions is None:
        positions = b.tabulate([ids.dims[1]], I32, lambda at: at[0].cast(I32))
    total = b.elementwise(
        [words, gather_rows(node, node.input(3), positions)], words.dtype, lambda v, p: v + p
    )
    segments, table = node.optional(1), node.optional(4)
    if segments is not None and table is not None:
        total = b.elementwise(
            [total, gather_rows(node, table, segments)], words.dtype, lambda v, s: v + s
        )
    made = normalize(
        b, total, total.rank - 1, node.float("epsilon", 1e-12), kind="layer",
        weight=node.input(5), bias=node.input(6),
    )  # fmt: skip
    return [made.y, _mask_index(node, ids), total]


def _mask_index(node: Node, ids: Value) -> Value | None:
    mask = node.optional(7)
    if not node.wants(1):
        return None
    if mask is None:
        return Value(I32, ids.dims[:1], ssa=node.b.full(I32, ids.dims[:1], 0))
    (count,) = node.b.reduce([mask], [1], [(I32, 0)], lambda v, a: [(v != 0).cast(I32) + a])
    return count


@lowers("LpNormalization")
def lp_normalization(node: Node) -> Value:
    """Each line along `axis` over its norm; a line of zeros stays one."""
    x, p = node.input(0), node.int("p", 2)
    axis = node.axis("axis", x.rank, -1)
    if p not in (1, 2):
        raise node.error(f"p is {p}, expected 1 or 2")
    (total,) = node.b.reduce(
        [x], [axis], [(x.dtype, 0)], lambda v, a: [(v * v if p == 2 else v.abs()) + a],
        keepdims=True,
    )  # fmt: skip

    def body(v, t):  # type: ignore[no-untyped-def]
        norm = t.sqrt() if p == 2 else t
        return (norm == 0.0).select(v.like(0), v / (norm == 0.0).select(v.like(1), norm))

    return node.b.elementwise([x, total], x.dtype, body)


@lowers("MeanVarianceNormalization")
def mean_variance_normalization(node: Node) -> Value:
    """(x - mean) / (standard deviation + 1e-9) over `axes`, [0, 2, 3] by default."""
    b, x = node.b, node.input(0)
    axes = [node.counted(axis, x.rank) for axis in node.ints("axes", [0, 2, 3])]
    count = b.scalar(product(x.dims[axis] for axis in axes)).cast(x.dtype)
    (total,) = b.reduce([x], axes, [(x.dtype, 0)], lambda v, a: [v + a], keepdims=True)
    centered = b.elementwise([x, total], x.dtype, lambda v, t: v - t / count)
    (squares,) = b.reduce([centered], axes, [(x.dtype, 0)], lambda v, a: [v * v + a], keepdims=True)
    return b.elementwise([centered, squares], x.dtype, lambda c, q: c / ((q / count).sqrt() + 1e-9))
