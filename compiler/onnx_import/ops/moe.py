"""com.microsoft's mixtures of experts, with weights of floats (MoE) and of codes (QMoE).

Which experts a row goes to, and with which weights, is as onnxruntime's CPU kernels have it: MoE
takes the softmax over all experts, QMoE that over the chosen ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ..building.scalars import Scalar
from ..building.shaping import reshape, slice_axis, transpose
from ..parts.activations import Activation, activation
from ..parts.experts import (
    Routes,
    SwiGlu,
    best_routes,
    halves,
    mixed,
    normalized,
    sparse_mixer,
    taken_from,
)
from ..registry import MICROSOFT, Node, lowers
from ..values.constants import Constant, QuantizedConstant, from_array
from ..values.packed_codes import UNSIGNED, codes_of
from ..values.quantized import dequantized
from ..values.symbolic import Dim, product
from ..values.value import Value, constant_value
from .matmul import product_of
from .softmax import softmax

Gate = Callable[[Scalar, Scalar], Scalar]

# The weight of a layer of an expert, N x K.
WeightOf = Callable[[int], Constant]


@dataclass(frozen=True)
class Layer:
    """One of the matrices of all experts, and their biases [E, N]."""

    weight: WeightOf
    bias: Value | None

    def __call__(self, node: Node, x: Value, number: int) -> Value:
        b = node.b
        w = transpose(b, constant_value(self.weight(number), x.dtype), [1, 0])
        if self.bias is None:
            return product_of(node, x, w)
        biases = self.bias.as_constant
        if biases is not None:
            part = _part(biases, number, biases.shape[1:])
            return product_of(node, x, w, constant_value(part, self.bias.dtype))
        row = reshape(b, slice_axis(b, self.bias, 0, number, 1), self.bias.dims[1:])
        y = product_of(node, x, w)
        return b.elementwise([y, row], y.dtype, lambda v, c: v + c)


@lowers("MoE", domain=MICROSOFT)
def moe(node: Node) -> Value:
    """Inputs: x, scores, then weights and bias of fc1, fc2 and fc3."""
    experts = _constant(node, 2).shape[0]
    layers = [_float_layer(node, i, experts) for i in (2, 4, 6)]
    if node.int("use_sparse_mixer", 0):
        return _network(node, _sparse_routes(node), experts, layers)
    scores = softmax(node.b, node.input(1), [1])
    routes = best_routes(node.b, scores, node.int("k", 1))
    if node.int("normalize_routing_weights", 0):
        routes = normalized(node.b, routes)
    return _network(node, routes, experts, layers)


def _sparse_routes(node: Node) -> Routes:
    if node.int("k", 1) != 2 or node.given(14):
        raise node.error("use_sparse_mixer chooses two experts (k is 2) and weighs them itself")
    return sparse_mixer(node.b, node.input(1))


@lowers("QMoE", domain=MICROSOFT)
def qmoe(node: Node) -> Value:
    """Inputs: x, scores, weights, scales and bias of fc1, fc2, fc3, their zero points, weights."""
    kind = node.choice("quant_type", "int", "fp4", "nvfp4", "fp8", "wfp4afp8")
    if kind not in ("int", "fp8"):
        raise node.error(f"the order in memory of experts of 4-bit floats ('{kind}') is a GPU's")
    prepacked = node.int("weights_prepacked", -1)
    if prepacked == -1 and kind == "int":
        node.b.note("does not say its weights' order: read as onnxruntime's CPU kernel reads them")
    if prepacked not in (-1, 0):
        raise node.error(
            "its weights are laid out for one kind of device", hint="export without prepacking"
        )
    experts = _constant(node, 2).shape[0]
    make = _code_layer if kind == "int" else _float8_layer
    layers = [make(node, i, experts) for i in range(3)]
    if node.int("use_sparse_mixer", 0):
        return _network(node, _sparse_routes(node), experts, layers)
    routes = best_routes(node.b, node.input(1), node.int("k", 1))
    chosen = Routes(routes.places, softmax(node.b, routes.weights, [1]))
    if node.given(14):
        chosen = taken_from(node.b, routes, node.input(14))
        if node.int("normalize_routing_weights", 0):
            chosen = normalized(node.b, chosen)
    return _network(node, chosen, experts, layers)


def _network(node: Node, routes: Routes, experts: int, layers: list[Layer | None]) -> Value:
    b, x, scores = node.b, node.input(0), node.input(1)
    first, second, third = layers
    if first is None or second is None:
        raise node.error("fc1 and fc2 must be given")
    if not 1 <= node.int("k", 1) <= experts:
        raise node.error(f"k is {node.int('k', 1)}, it has {experts} experts")
    b.require_equal(scores.dims[1], Dim.of(experts), f"{scores} are not of {experts} experts")
    kind = node.choice(
        "activation_type", "relu", "swiglu", "geglu", "identity", "silu", "gelu", "relu2"
    )
    gated = kind in ("swiglu", "geglu")
    fusion = node.int("swiglu_fusion", 0)
    if gated and (fusion == 0) != (third is not None):
        raise node.error("swiglu_fusion is 0 where the linear part has weights of its own (fc3)")
    gate = _gate(node, kind)
    by_itself = None if gated else _activation(node, kind)

    def expert(rows: Value, number: int) -> Value:
        hidden = first(node, rows, number)
        if third is not None:
            linear = third(node, rows, number)
            hidden = b.elementwise([hidden, linear], hidden.dtype, gate)
        elif by_itself is None:
            parts = halves(b, hidden, interleaved=fusion == 1)
            hidden = b.elementwise(parts, hidden.dtype, gate)
        else:
            hidden = b.elementwise([hidden], hidden.dtype, by_itself)
        return second(node, hidden, number)

    rows = reshape(b, x, [product(x.dims[:-1]), x.dims[-1]])
    return reshape(b, mixed(b, rows, routes, experts, expert), x.dims)


def _gate(node: Node, kind: str) -> Gate:
    """What is made of the elements of the gate and of the linear part."""
    if kind == "swiglu":
        return SwiGlu(
            node.float("activation_alpha", 1.0),
            node.float("activation_beta", 0.0),
            node.float("swiglu_limit", math.inf),
            cut_behind=bool(node.int("swiglu_limit_after_activation", 0)),
        )
    body = _activation(node, kind)
    return lambda gate, linear: body(gate) * linear


def _activation(node: Node, kind: str) -> Activation:
    """What experts call GELU is its approximation by tanh."""
    return activation(node, {"gelu": "fastgelu", "geglu": "fastgelu"}.get(kind, kind))


def _constant(node: Node, i: int) -> Constant:
    constant = node.input(i).as_constant
    if constant is None:
        raise node.error(f"input {i} must be constant: each expert's weights are packed")
    return constant


def _float_layer(node: Node, i: int, experts: int) -> Layer | None:
    if not node.given(i):
        return None
    constant = _constant(node, i)
    if len(constant.shape) != 3 or constant.shape[0] != experts:
        raise node.error(f"input {i} is {constant.shape}, expected {experts} matrices")

    def weight(number: int) -> Constant:
        return _part(constant, number, constant.shape[1:])

    return Layer(weight, node.optional(i + 1))


def _part(constant: Constant, number: int, shape: tuple[int, ...]) -> Constant:
    """What a constant has for one expert."""
    load = constant.load
    return Constant(
        shape,
        constant.elem_type,
        lambda: load()[number].reshape(shape),
        name=f"{constant.name}.{number}" if constant.name else "",
    )


def _float8_layer(node: Node, layer: int, experts: int) -> Layer | None:
    """Layer 0, 1 or 2 of QMoE, of float8e4m3fn: E x N x K, one scale for a square block of a matrix
    or, without a block size, for a matrix."""
    i, block = 2 + 3 * layer, node.int("block_size", 0)
    if not node.given(i):
        return None
    if any(node.given(other) for other in (11, 12, 13, 17, 18, 19, 20)):
        raise node.error("experts of 8-bit floats have neither zero points nor scales of rows")
    stored = _constant(node, i)
    scale = _constant(node, i + 1) if block > 0 else _constant(node, 15 + layer)
    if stored.elem_type != TensorProto.FLOAT8E4M3FN or len(stored.shape) != 3:
        raise node.error(f"input {i} is {node.input(i)}, expected matrices of float8e4m3fn")
    n, k = stored.shape[1:]
    grid = (-(-n // block), -(-k // block)) if block > 0 else ()
    if stored.shape[0] != experts or scale.shape != (experts, *grid):
        raise node.error(f"scales {scale.shape} do not fit {stored.shape} in blocks of {block}")
    dtype = node.input(0).dtype

    def weight(number: int) -> Constant:
        def values() -> np.ndarray:
            steps = scale.load()[number].astype(np.float32)
            for axis in range(len(grid)):
                steps = np.repeat(steps, block, axis=axis)
            codes = stored.load()[number].astype(np.float32)
            return (codes * (steps[:n, :k] if grid else steps)).astype(dtype.dtype)

        name = f"{stored.name}.{number}" if stored.name else ""
        return Constant((n, k), dtype.onnx, values, name=name)

    return Layer(weight, node.optional(i + 2))


def _code_layer(node: Node, layer: int, experts: int) -> Layer | None:
    """Layer 0, 1 or 2 of QMoE; its weights are bytes of codes, the first in the low bits."""
    i = 2 + 3 * layer
    if not node.given(i):
        return None
    bits = node.int(f"fc{layer + 1}_expert_weight_bits", 0) or node.int("expert_weight_bits", 4)
    if bits not in UNSIGNED:
        raise node.error(f"experts of {bits} bits are not supported, only {sorted(UNSIGNED)}")
    packed, scale = _constant(node, i), _constant(node, i + 1)
    if len(packed.shape) != 3 or packed.shape[0] != experts:
        raise node.error(f"input {i} is {packed.shape}, expected {experts} matrices of bytes")
    n, k = packed.shape[1], packed.shape[2] * 8 // bits
    block = node.int("block_size", 0)
    blocks = -(-k // block) if block else 1
    if scale.size != experts * n * blocks:
        raise node.error(f"input {i + 1} is {scale.shape}: no scales for {n} x {blocks} blocks")
    zero = _constant(node, 11 + layer) if node.given(11 + layer) else None
    middle = from_array(np.full((1, 1), 1 << (bits - 1), np.uint8))

    def zeros(number: int) -> Constant:
        if zero is None:
            return middle
        stored = _part(zero, number, zero.shape[1:])
        if block:
            return codes_of(stored, bits, (n, blocks))
        return codes_of(stored, bits, (1, n)).reshaped((n, 1))  # one row of bytes

    def weight(number: int) -> Constant:
        codes = codes_of(_part(packed, number, packed.shape[1:]), bits, (n, k))
        steps = _part(scale, number, (n, blocks))
        source = QuantizedConstant(codes, steps, zeros(number), block)
        return dequantized(source, (n, k), node.input(0).dtype.onnx)

    return Layer(weight, node.optional(i + 2))
