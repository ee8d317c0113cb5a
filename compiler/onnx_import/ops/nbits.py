"""Products and tables of com.microsoft with weights of 2, 4 and 8 bits in blocks.

The weights stay codes: the kernels read them, with f32 activations. (`accuracy_level`, which lets
onnxruntime round activations to 8 bits, asks for a minimum and is met.)
"""

from __future__ import annotations

import numpy as np

from ..building.scalars import Scalar
from ..building.shaping import reshape, transpose
from ..registry import MICROSOFT, Node, lowers
from ..values.constants import Constant, QuantizedConstant, from_array
from ..values.element_types import BOOL, I64
from ..values.packed_codes import UNSIGNED, codes_of
from ..values.quantized import along_axis, dequantized, dequantized_constant
from ..values.symbolic import ONE
from ..values.value import Value, constant_value
from .indexing import take
from .matmul import is_vector, product_of

Part = tuple[Constant, Constant, Constant]  # codes, scales and zero points


@lowers("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(node: Node) -> Value:
    """`a @ w^T + bias`, w N x K in blocks of `block_size` along K."""
    x, bias = node.input(0), node.optional(5)
    if node.int("weight_prepacked", 0):
        raise node.error(
            "its weight is laid out for one kind of GPU", hint="export it without prepacking"
        )
    n, k, bits = node.int("N"), node.int("K"), node.int("bits", 4)
    if bits not in UNSIGNED or min(n, k) < 1:
        raise node.error(f"{bits} bits of {n} x {k} weights; expected {sorted(UNSIGNED)} bits")
    codes, scale, zero = _parts(node, n, k, bits)
    if node.given(4):
        x, codes, scale, zero = _regrouped(node, x, codes, scale, zero)
    source = QuantizedConstant(codes, scale, zero, node.int("block_size"))
    weight = constant_value(dequantized(source, (n, k), x.dtype.onnx), x.dtype)
    columns = transpose(node.b, weight, [1, 0])
    fused = bias is not None and is_vector(bias, columns)
    product = product_of(node, x, columns, bias if fused else None)
    if bias is None or fused:
        return product
    return node.b.elementwise([product, bias], product.dtype, lambda v, c: v + c)


def _constant(node: Node, i: int) -> Constant:
    constant = node.input(i).as_constant
    if constant is None:
        raise node.error(f"input {i} must be constant: weights are packed at compile time")
    return constant


def _parts(node: Node, n: int, k: int, bits: int) -> Part:
    """Codes N x K, scales and zero points N x blocks; zero points are codes or floats."""
    block = node.int("block_size")
    blocks = -(-k // block)
    packed, scale = _constant(node, 1), _constant(node, 2)
    if packed.size * 8 // bits != n * blocks * block:
        raise node.error(f"its weight has {packed.size} bytes, {n} x {k} of {bits} bits do not fit")
    if scale.size != n * blocks:
        raise node.error(f"it has {scale.size} scales for {n} x {blocks} blocks")
    codes, scale = codes_of(packed, bits, (n, k)), scale.reshaped((n, blocks))
    if not node.given(3):
        middle = np.full((1, 1), 1 << (bits - 1), np.uint8)
        return codes, scale, from_array(middle)
    zero = _constant(node, 3)
    if zero.dtype != np.uint8:
        if zero.size != n * blocks:
            raise node.error(f"it has {zero.size} zero points for {n} x {blocks} blocks")
        return codes, scale, zero.reshaped((n, blocks))
    if zero.size != n * -(-blocks * bits // 8):
        raise node.error(f"its zero points have {zero.size} bytes for {n} x {blocks} blocks")
    return codes, scale, codes_of(zero, bits, (n, blocks))


def _regrouped(
    node: Node, x: Value, codes: Constant, scale: Constant, zero: Constant
) -> tuple[Value, Constant, Constant, Constant]:
    """With `g_idx`, the block of every column: columns of a block are put side by side.

    The activation's columns go along. Where a block has more or fewer columns than others, each
    column gets a scale and zero point of its own, and the weight is float.
    """
    block, (n, k) = node.int("block_size"), codes.shape
    groups = node.constant_of(4).reshape(-1)[:k].astype(np.int64)
    blocks = scale.shape[1]
    if len(groups) != k or groups.min() < 0 or groups.max() >= blocks:
        raise node.error(f"g_idx does not give one of {blocks} blocks for each of {k} columns")
    straight = np.arange(k) // block
    if np.array_equal(groups, straight):
        return x, codes, scale, zero
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], straight):
        spread = [_columns(part, groups, (n, k)) for part in (scale, zero)]
        return x, codes, spread[0], spread[1]
    load = codes.load
    moved = Constant(codes.shape, codes.elem_type, lambda: load()[:, order], name=codes.name)
    places = constant_value(from_array(order), I64)
    return take(node, x, places, x.rank - 1), moved, scale, zero


def _columns(part: Constant, groups: np.ndarray, shape: tuple[int, ...]) -> Constant:
    """The scale or zero point of every column."""
    if part.size == 1:
        return part
    load = part.load
    return Constant(shape, part.elem_type, lambda: load()[:, groups])


@lowers("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(node: Node) -> Value:
    """Slices of a table of codes; zeros for an index out of range."""
    table, scale = node.input(0), _constant(node, 2)
    codes, zero = _constant(node, 0), _constant(node, 3) if node.given(3) else None
    axis = node.axis("quantize_axis", table.rank, 1)
    if codes.dtype == np.uint8:
        bits = node.int("bits", 4)
        if bits not in UNSIGNED:
            raise node.error(f"bits is {bits}, expected one of {sorted(UNSIGNED)}")
        per_byte = 8 // bits
        codes = codes_of(codes, bits, (*codes.shape[:-1], codes.shape[-1] * per_byte))
        if zero is None:
            zero = from_array(np.array(1 << (bits - 1), np.uint8))
        else:
            zero = codes_of(zero, bits, scale.shape)
    block = node.int("block_size", 128) or codes.shape[axis]
    if along_axis(scale, codes.shape, axis, block) is None:
        raise node.error(
            f"scales {scale.shape} do not fit table {codes.shape} in blocks of {block}"
        )
    values = dequantized_constant(
        codes, scale, zero, axis=axis, block=block, elem_type=scale.elem_type
    )
    if values is None:
        raise node.error(f"the zero points do not fit table {codes.shape} in blocks of {block}")
    known = constant_value(values, node.input(2).dtype)
    return _or_zeros(node, known, node.input(1), node.axis("gather_axis", table.rank, 0))


def _or_zeros(node: Node, x: Value, indices: Value, axis: int) -> Value:
    """As Gather, but an index out of range gives zeros."""
    b, size = node.b, x.dims[axis]
    places, known = indices.numpy(), size.value
    if (
        places is not None
        and places.size
        and known
        and -known <= places.min()
        and places.max() < known
    ):
        return take(node, x, indices, axis)
    limit = b.scalar(size).cast(I64)

    def is_inside(index: Scalar) -> Scalar:
        place = index.cast(I64)
        return (place >= -limit) & (place < limit)

    safe = b.elementwise([indices], indices.dtype, lambda i: is_inside(i).select(i, 0))
    inside = b.elementwise([indices], BOOL, is_inside)
    flags = reshape(b, inside, [*[ONE] * axis, *indices.dims, *[ONE] * (x.rank - axis - 1)])
    taken = take(node, x, safe, axis)
    return b.elementwise([taken, flags], x.dtype, lambda v, here: here.select(v, 0))


# Values of the codes, in units of a block's largest magnitude (bitsandbytes; Dettmers et al.,
# "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, appendix E for NF4).
FP4 = (
    0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
    -0.0, -5.208333333e-03, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25,
)  # fmt: skip
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@lowers("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(node: Node) -> Value:
    """`a @ w^T`, or `a @ w` where `transB` is 0, w N x K; the weight is decoded to floats.

    No kernel reads codes of a codebook; the first code of a byte is in its high bits.
    """
    x = node.input(0)
    n, k, block = node.int("N"), node.int("K"), node.int("block_size")
    kind = node.int("quant_type")
    if kind not in (0, 1):
        raise node.error(f"quant_type is {kind}, expected 0 (FP4) or 1 (NF4)")
    packed, largest = _constant(node, 1), _constant(node, 2)
    if packed.size != -(-n * k // 2) or largest.size != -(-n * k // block):
        raise node.error(f"{packed.size} bytes and {largest.size} scales do not fit {n} x {k}")
    codebook = np.array(NF4 if kind else FP4, np.float32)

    def values() -> np.ndarray:
        stored = packed.load().reshape(-1)
        codes = np.stack([stored >> 4, stored & 15], axis=1).reshape(-1)[: n * k]
        scale = largest.load().astype(np.float32).reshape(-1).repeat(block)[: n * k]
        return (codebook[codes] * scale).reshape(n, k).astype(x.dtype.dtype)

    weight = constant_value(Constant((n, k), x.dtype.onnx, values, name=packed.name), x.dtype)
    if node.int("transB", 1):
        weight = transpose(node.b, weight, [1, 0])
    return product_of(node, x, weight)
