"""The abq dialect: the operations whose numbers we own.

Two forms of an operation exist, told apart by element types, never by name:

* *float*: activations and weights are f32 tensors (what the importer makes);
* *formats*: quantized tensors have elements of type `!abq.code<"w4:g128:sym">`, and their
  scales and zero points are ordinary operands (what `passes/quantize.py` makes).

Once a strategy has been chosen, layouts appear in types as `!abq.packed<"...">`: an opaque
sequence of bytes whose meaning belongs to that strategy.

Every operation but `append` is pure, so that `canonicalize` and `cse` remove dead and
duplicate ones. (No postponed annotations here: the bindings read them as Python objects.)
"""

from typing import Any

from .cache_formats import parse_cache_format
from .element_types import is_integer, text_of
from .mlir import ext, ir

DYNAMIC = ir.ShapedType.get_dynamic_size()

Tensor = ext.Operand[ir.RankedTensorType]
TensorResult = ext.Result[ir.RankedTensorType]


class Abq(ext.Dialect, name="abq"):
    """Arbitrary-bit quantization."""


class CodeType(Abq.Type, name="code"):
    """The element type of codes; `format` is a text that `formats.parse_scheme` reads."""

    format: ir.StringAttr


class PackedType(Abq.Type, name="packed"):
    """The element type of a tensor of bytes laid out by a strategy; `layout` names the layout."""

    layout: ir.StringAttr


def shape(value: ir.Value) -> list[int]:
    """The static shape of a ranked tensor; `DYNAMIC` where a size is not known."""
    return list(ir.RankedTensorType(value.type).shape)


def element(value: ir.Value) -> ir.Type:
    return ir.RankedTensorType(value.type).element_type


def element_text(value: ir.Value) -> str:
    """The text of the element type (`element_types.text_of`)."""
    return text_of(element(value))


def code_format(value: ir.Value) -> str | None:
    """The format of a tensor of codes, None where the elements are no codes."""
    type_ = element(value)
    return ir.StringAttr(type_.format).value if isinstance(type_, CodeType) else None


def holds_codes(value: ir.Value) -> bool:
    """Whether it is a tensor of bytes: codes that are stored as ordinary integers."""
    return is_integer(element(value), 8)


def is_packed(value: ir.Value) -> bool:
    return isinstance(element(value), PackedType)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def decoded_columns(row_bytes: int, format: str, columns: int) -> int:
    """`columns`, if rows of so many elements have `row_bytes` in a format of caches; ValueError."""
    _require(columns != DYNAMIC, "rows of caches have a static length")
    expected = parse_cache_format(format).row_bytes(columns)
    _require(row_bytes == expected, f"rows of {columns} elements in {format} are {expected} bytes")
    return columns


def _agree(a: int, b: int) -> bool:
    return DYNAMIC in (a, b) or a == b


class VerifiedOperation(Abq.Operation):
    """Gives an operation a verifier: `check` raises ValueError with the broken rule."""

    __annotations__ = {}

    @classmethod
    def verify_invariants(cls, op: Any) -> bool:
        try:
            cls.check(op)  # type: ignore[attr-defined]
        except ValueError as error:
            op.location.emit_error(f"'{op.operation.name}' op {error}")
            return False
        return True


def _check_scales(op: Any) -> None:
    """Codes and scales come together, and zero points never without scales."""
    x_format, w_format = code_format(op.x), code_format(op.w)
    _require((x_format is None) == (op.x_scale is None), "x_scale belongs to an x of codes")
    _require((w_format is None) == (op.w_scale is None), "w_scale belongs to a w of codes")
    _require(op.x_zero is None or op.x_scale is not None, "x_zero without x_scale")
    _require(op.w_zero is None or op.w_scale is not None, "w_zero without w_scale")
    if is_integer(element(op.result), 32):
        codes = op.x_scale is not None and (op.w_scale is not None or holds_codes(op.w))
        _require(codes, "accumulators are of codes")
        _require(op.bias is None, "accumulators have no bias")


class WeightOp(Abq.Operation, name="weight", traits=[ext.Pure]):
    """A constant tensor that lives in the weight store under `sym`."""

    sym: ir.StringAttr
    result: TensorResult


class MatmulOp(VerifiedOperation, name="matmul", traits=[ext.Pure]):
    """`y[..., n] = sum over k of x[..., k] * w[n, k], + bias[n]`; `w` is N x K, K innermost.

    `node` is the name of the ONNX node, which recipes match. A result of i32 is of codes, their
    exact accumulators without scales and bias (docs/numerics.md).
    """

    x: Tensor
    w: Tensor
    node: ir.StringAttr
    result: TensorResult
    bias: Tensor | None = None
    x_scale: Tensor | None = None
    x_zero: Tensor | None = None
    w_scale: Tensor | None = None
    w_zero: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        if is_packed(op.w):
            return  # a blob: its shape says nothing about N and K
        x, w, y = shape(op.x), shape(op.w), shape(op.result)
        _require(len(w) == 2, "w must be N x K")
        _require(len(x) >= 1 and _agree(x[-1], w[1]), f"x has K = {x[-1:]}, w has K = {w[1]}")
        _require(len(y) == len(x) and _agree(y[-1], w[0]), f"y must be [..., {w[0]}]")
        if op.bias is not None:
            _require(shape(op.bias) == [w[0]], f"bias must have {w[0]} elements")
        _check_scales(op)


# The attribute of products and attention that read rows of quantized caches: their formats
# (`cache_formats.py`). Such operands are bytes, [..., row bytes].
ROWS = "rows"


class BatchMatmulOp(VerifiedOperation, name="batch_matmul", traits=[ext.Pure]):
    """`y[b] = a[b] @ c[b]` of float activations; `c` is B x K x N, or B x N x K if `transposed`.

    The batches of `a` are a multiple of those of `c`: consecutive ones share one (grouped queries).
    With an attribute `rows`, a text, the rows of `c` are those of a quantized cache.
    """

    a: Tensor
    c: Tensor
    transposed: ir.IntegerAttr  # 0 or 1
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        a, c, y = shape(op.a), shape(op.c), shape(op.result)
        _require(len(a) == len(c) == len(y) == 3, "a, c and y have rank 3")
        transposed = bool(ir.IntegerAttr(op.transposed).value)
        if ROWS in op.attributes:
            text = ir.StringAttr(op.attributes[ROWS]).value
            c[2] = decoded_columns(c[2], text, a[2] if transposed else y[2])
        k, n = (c[2], c[1]) if transposed else (c[1], c[2])
        _require(_agree(a[2], k), f"a has K = {a[2]}, c has K = {k}")
        _require(_agree(a[1], y[1]) and _agree(n, y[2]), "y must be B x M x N")


class AttentionOp(VerifiedOperation, name="attention", traits=[ext.Pure]):
    """`y = softmax(scale * q k^T + mask) v` for every head, without the scores in memory.

    `q` is B x H x M x D, `k` B x Hk x T x D, `v` B x Hk x T x E and y B x H x M x E; where
    `rows_first` (of q, k, v, y) is 1, heads and rows are exchanged in memory: B x M x H x D. H is
    a multiple of Hk: consecutive heads share one (grouped queries). `mask_map` gives from
    (b, h, m, t) the element of `mask`, a loop or 0 for each of its axes. `mask_kind`: `none`;
    `add`; `replace`: where the mask is not 0, it takes the place of the score. `guarded`: rows of y
    that would be NaN, for want of a score above minus infinity, are 0. With an attribute `rows`,
    two texts, the rows of `k` and `v` are those of quantized caches where these are not empty.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: Any  # f32
    rows_first: Any  # array<i64: 4 times 0 or 1>
    mask_kind: ir.StringAttr
    mask_map: Any  # affine_map<(b, h, m, t) -> (...)>
    guarded: ir.IntegerAttr  # 0 or 1
    result: TensorResult
    mask: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        flags = list(ir.DenseI64ArrayAttr(op.attributes["rows_first"]))
        _require(len(flags) == 4, "rows_first: q, k, v and y")
        shapes = [shape(value) for value in (op.q, op.k, op.v, op.result)]
        _require(all(len(s) == 4 for s in shapes), "q, k, v and y have rank 4")
        for sizes, rows_first in zip(shapes, flags, strict=True):
            if rows_first:
                sizes[1], sizes[2] = sizes[2], sizes[1]
        q, k, v, y = shapes
        if ROWS in op.attributes:
            for x, other, text in zip(
                (k, v), (q, y), ir.ArrayAttr(op.attributes[ROWS]), strict=True
            ):
                if ir.StringAttr(text).value:
                    x[3] = decoded_columns(x[3], ir.StringAttr(text).value, other[3])
        _require(_agree(q[3], k[3]), f"q has {q[3]} columns, k {k[3]}")
        _require(all(map(_agree, k[:3], v[:3])), "k and v differ in batch, heads or keys")
        _require(all(map(_agree, y, [*q[:3], v[3]])), "y must be B x H x M x E")
        kind = ir.StringAttr(op.mask_kind).value
        _require(kind in ("none", "add", "replace"), f"no mask_kind '{kind}'")
        _require((kind == "none") == (op.mask is None), "mask belongs to a mask_kind")
        map_ = ir.AffineMapAttr(op.attributes["mask_map"]).value
        _require(map_.n_dims == 4, "mask_map is a map of (b, h, m, t)")
        if op.mask is not None:
            _require(len(map_.results) == len(shape(op.mask)), "mask_map: a result for each axis")


class AttentionPackOp(AttentionOp, name="attention_pack"):
    """`abq.attention`, heads of a row behind each other, and an `abq.pack` of its rows.

    `kernel` is the name of the packing kernel, `packed`, B x M x row bytes, what it packs.
    """

    kernel: ir.StringAttr = ext.attribute(kw_only=True)
    packed: TensorResult = ext.result(kw_only=True)

    @staticmethod
    def check(op: Any) -> None:
        AttentionOp.check(op)
        _require(list(ir.DenseI64ArrayAttr(op.attributes["rows_first"]))[3] == 1, "rows come first")
        rows, y = shape(op.packed), shape(op.result)
        _require(is_packed(op.packed) and len(rows) == 3, "packed are bytes of rows")
        _require(all(map(_agree, rows[:2], y[:2])), "packed are the rows of y")


class NormOp(VerifiedOperation, name="norm", traits=[ext.Pure]):
    """Rows (the last axis) normalized, `kind` `layer` or `rms`, after a residual is added to them.

    `sum = x + residual`, x where there is none; c is the sum, of layer norms without its mean;
    `y = c / sqrt(mean of c^2 + epsilon) * weight + bias`. Weight and bias are of one row.
    """

    x: Tensor
    kind: ir.StringAttr
    epsilon: Any  # f32
    result: TensorResult
    sum: TensorResult
    residual: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        kind = ir.StringAttr(op.kind).value
        _require(kind in ("layer", "rms"), f"no kind '{kind}'")
        columns = shape(op.x)[-1]
        _require(columns != DYNAMIC, "rows have a static length")
        for value in (op.residual, op.result, op.sum):
            if value is not None:
                _require(len(shape(value)) == len(shape(op.x)), "x, residual and y have one rank")
                _require(all(map(_agree, shape(value), shape(op.x))), "they have one shape")
        for value in (op.weight, op.bias):
            if value is not None:
                _require(shape(value) == [columns], f"weight and bias have {columns} elements")


class NormPackOp(NormOp, name="norm_pack"):
    """`abq.norm` and one to three `abq.pack` of its result, in one launch.

    `kernels` are the names of the packing kernels; `first` to `third` are what each of them packs.
    (Three results, for in IRDL the values of a variadic one have one type.)
    """

    kernels: ir.ArrayAttr = ext.attribute(kw_only=True)
    first: TensorResult = ext.result(kw_only=True)
    second: TensorResult | None = None
    third: TensorResult | None = None

    @staticmethod
    def check(op: Any) -> None:
        NormOp.check(op)
        packs = packs_of(op)
        _require(len(packs) == len(ir.ArrayAttr(op.kernels)), "a kernel for each packed result")
        for packed in packs:
            rows = [_agree(*sizes) for sizes in zip(shape(packed), shape(op.x), strict=False)]
            _require(is_packed(packed) and all(rows[:-1]), "packs are packed bytes of x's rows")
            _require(len(shape(packed)) == len(shape(op.x)), "packs and x have one rank")


def packs_of(op: Any) -> list[ir.Value]:
    """The packed results of an `abq.norm_pack`."""
    return [packed for packed in (op.first, op.second, op.third) if packed is not None]


class SoftmaxOp(VerifiedOperation, name="softmax", traits=[ext.Pure]):
    """`exp(x - max) / sum of exp(x - max)` over the last axis."""

    x: Tensor
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _require(shape(op.x) == shape(op.result), "x and y have one shape")


class ConvOp(VerifiedOperation, name="conv", traits=[ext.Pure]):
    """A convolution of any rank as ONNX defines Conv.

    `x` is B x C x spatial, `w` is O x C/groups x window, `pads` lists begins, then ends. A result
    of i32 holds accumulators, as that of `matmul`.
    """

    x: Tensor
    w: Tensor
    node: ir.StringAttr
    strides: Any  # array<i64>; the bindings have no constraint for it
    dilations: Any
    pads: Any
    groups: ir.IntegerAttr
    result: TensorResult
    bias: Tensor | None = None
    x_scale: Tensor | None = None
    x_zero: Tensor | None = None
    w_scale: Tensor | None = None
    w_zero: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        x, w, y = shape(op.x), shape(op.w), shape(op.result)
        spatial = len(w) - 2
        _require(spatial >= 1 and len(x) == len(w) == len(y), "x, w and y must have one rank >= 3")
        groups = ir.IntegerAttr(op.groups).value
        _require(_agree(x[1], w[1] * groups), f"x has {x[1]} channels, w {w[1]} x {groups} groups")
        _require(w[0] % groups == 0, f"{w[0]} output channels in {groups} groups")
        for name, count in (("strides", spatial), ("dilations", spatial), ("pads", 2 * spatial)):
            _require(
                len(ir.DenseI64ArrayAttr(op.attributes[name])) == count, f"{name}: {count} values"
            )
        if op.bias is not None:
            _require(shape(op.bias) == [w[0]], f"bias must have {w[0]} elements")
        _check_scales(op)


class GatherOp(VerifiedOperation, name="gather", traits=[ext.Pure]):
    """Rows of a table: `y[i..., :] = table[indices[i...], :]`, dequantized if the table has codes.

    `indices` are i64 or i32 and lie in [0, rows): the importer has mended negative ones.
    """

    table: Tensor
    indices: Tensor
    node: ir.StringAttr
    result: TensorResult
    scale: Tensor | None = None
    zero: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        if is_packed(op.table):
            return
        table, indices, y = shape(op.table), shape(op.indices), shape(op.result)
        _require(len(table) == 2, "the table must be rows x columns")
        _require(
            len(y) == len(indices) + 1 and _agree(y[-1], table[1]),
            "y must be [indices..., columns]",
        )
        _require(
            (code_format(op.table) is None) == (op.scale is None),
            "scale belongs to a table of codes",
        )


class QuantizeOp(VerifiedOperation, name="quantize", traits=[ext.Pure]):
    """Float activations to codes, scales (f32) and zero points (i32), by the format in the type.

    Scales and zero points have the shape of `x` without its last axis (per token), or of its
    first axis (per image, format `...:image`). With `x_scale` and `x_zero` given, those are used
    and returned. An `x` of i8 has been quantized with them already: it holds the codes, two's
    complement where the format is symmetric, unsigned where it is not.
    """

    x: Tensor
    codes: TensorResult
    scale: TensorResult
    zero: TensorResult
    x_scale: Tensor | None = None
    x_zero: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        given = op.x_scale is not None and op.x_zero is not None
        _require(given or not holds_codes(op.x), "codes come with x_scale and x_zero")


class MeasureOp(Abq.Operation, name="measure", traits=[ext.Pure]):
    """The scale and zero point of every sample of `x` (its first axis), for `format`; with `gate`,
    [B, C], of `x` times the gates of its channels (its second axis)."""

    x: Tensor
    format: ir.StringAttr
    scale: TensorResult
    zero: TensorResult
    gate: Tensor | None = None


class DequantizeOp(Abq.Operation, name="dequantize", traits=[ext.Pure]):
    """`scale * (code - zero)` in f32."""

    codes: Tensor
    scale: Tensor
    result: TensorResult
    zero: Tensor | None = None


class HadamardOp(VerifiedOperation, name="hadamard", traits=[ext.Pure]):
    """The orthonormal Hadamard transform of the last axis, block-diagonal with `block` columns.

    `block` divides the last axis and is a size that `dialects.hadamard` has a matrix for.
    """

    x: Tensor
    block: ir.IntegerAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        block = ir.IntegerAttr(op.block).value
        _require(shape(op.x)[-1] % block == 0, f"{shape(op.x)[-1]} is no multiple of block {block}")


class PackOp(Abq.Operation, name="pack", traits=[ext.Pure]):
    """Activations to a strategy's bytes, rotated and quantized on the way, by one `kernel`.

    The result is rows x row bytes of `!abq.packed<layout>`. `x_scale` and `x_zero` are given where
    several rows share them (one scale per image); otherwise each row gets its own.
    """

    x: Tensor
    kernel: ir.StringAttr
    result: TensorResult
    x_scale: Tensor | None = None
    x_zero: Tensor | None = None


class AppendOp(Abq.Operation, name="append"):
    """Output `output` of the model: input `input` with `x` appended along `axis`; with `begins`
    and `capacity`, the `abq.update` of it with the rows `x`.

    Written in place where the caller hands in one buffer for both (a cache that grows). The one
    operation with an effect: it makes an output even if nothing else reads it.
    """

    x: Tensor
    input: ir.IntegerAttr
    output: ir.IntegerAttr
    axis: ir.IntegerAttr
    result: TensorResult
    begins: Tensor | None = None
    capacity: ext.Operand[ir.IndexType] | None = None
