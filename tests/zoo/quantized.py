"""A model with a recipe's rounding written into it, in standard ONNX.

onnxruntime computes it, so that what a quantized library answers has a reference that shares no
code with the compiler but the encoding of weights (dialects/formats.py, which has golden vectors
of its own): a library that is far from the float model is right where this model is as far.

Weights become what their codes stand for. An activation x becomes s * (q - z) of docs/numerics.md,
by ReduceMax, ReduceMin, Div and Round. Rewritten are MatMul and Gemm with a constant matrix, Conv
and ConvTranspose in one group, Gather from a constant table, recurrent operators, MatMulNBits and
MatMulInteger. Codes of no more bits than the recipe asks for stay, of weights and of activations;
others are encoded anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from abqc.compiler.recipe import OpRecipe, Recipe
from abqc.dialects.formats import Scheme, quantize_weight
from abqc.passes.quantization.product_encodings import SMALL_TABLE
from numpy.typing import NDArray
from onnx import helper, numpy_helper

F32 = NDArray[np.float32]
PREFIX = "zoo/quantized/"
# Nodes that the compiler folds between a weight and its use (docs/numerics.md).
FOLDED = ("Transpose", "Reshape", "Cast", "Identity", "Unsqueeze", "Squeeze", "DequantizeLinear")
CODES = 8  # bits of the codes that DequantizeLinear and MatMulInteger have
OPSET = 11  # that of Round, and of a Clip whose bounds are inputs


class NotExpressible(Exception):
    """The model cannot be rewritten: the reason is the text."""


def quantized(model: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """A copy of `model` that rounds as `recipe` says. Raises NotExpressible."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    opset = next(entry.version for entry in result.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OPSET:
        raise NotExpressible(f"opset {opset} has no Round")
    rewriter = _Rewriter(result.graph, recipe, opset)
    rewriter.run()
    if not rewriter.changed:
        raise NotExpressible("no node has a constant weight of floats")
    return result


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto, recipe: Recipe, opset: int) -> None:
        self.graph, self.recipe, self.opset = graph, recipe, opset
        self.changed = 0
        self._constants = _Constants(graph, opset)
        self._nodes: list[onnx.NodeProto] = []
        self._rounded: dict[tuple[str, str], str] = {}
        self._tables = self._table_schemes()

    def run(self) -> None:
        for node in self.graph.node:
            match node.op_type:
                case "MatMul" | "Gemm":
                    self._product(node)
                case "MatMulInteger":
                    self._integer_product(node)
                case "MatMulNBits":
                    self._packed_product(node)
                case "Conv" | "ConvTranspose":
                    self._conv(node)
                case "LSTM" | "GRU" | "RNN":
                    self._recurrence(node)
                case "Gather":
                    self._gather(node)
            self._nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)
        del self.graph.value_info[:]  # sums of integers have become floats

    def _resolve(self, node: onnx.NodeProto, kind: str) -> OpRecipe:
        # a node without a name has one of the compiler's, which only patterns read
        return self.recipe.resolve(node.name or node.op_type, kind)  # type: ignore[arg-type]

    def _table_schemes(self) -> dict[str, Scheme]:
        """The formats of the tables, by the initializer: a head tied to one takes it."""
        schemes = {}
        for node in self.graph.node:
            table = self._table(node)
            scheme = self._resolve(node, "gather").weight
            if table is not None and table.size >= SMALL_TABLE and scheme is not None:
                schemes[self._constants.source(node.input[0])] = scheme
        return schemes

    def _table(self, node: onnx.NodeProto) -> F32 | None:
        if node.op_type != "Gather" or any(a.name == "axis" and a.i for a in node.attribute):
            return None
        table = self._constants.floats(node.input[0])
        return table if table is not None and table.ndim == 2 else None

    def _recurrence(self, node: onnx.NodeProto) -> None:
        """The weights and the input; the state, which every step rounds, has no form in ONNX."""
        recipe = self._resolve(node, "matmul")
        if recipe.weight is None:
            return
        for place in (1, 2):  # W and R, [directions, gates * hidden, K]
            weight = self._constants.floats(node.input[place])
            if weight is None:
                return
            rows = weight.reshape(-1, weight.shape[-1])
            decoded = quantize_weight(rows, recipe.weight).dequantize().reshape(weight.shape)
            self.changed += 1
            node.input[place] = self._constant(f"weight{place}/{len(self._nodes)}", decoded)
        node.input[0] = self._activation(node.input[0], recipe.activation, [-1])

    def _gather(self, node: onnx.NodeProto) -> None:
        table = self._table(node)
        scheme = self._tables.get(self._constants.source(node.input[0]))
        if table is not None and scheme is not None:
            node.input[0] = self._weight(node, quantize_weight(table, scheme).dequantize())

    def _product(self, node: onnx.NodeProto) -> None:
        """A product whose second factor is a constant matrix."""
        flags = {a.name: a.i for a in node.attribute if a.name in ("transA", "transB")}
        weight = self._constants.floats(node.input[1])
        if weight is None or weight.ndim != 2 or flags.get("transA"):
            return
        recipe = self._resolve(node, "matmul")
        scheme = self._tables.get(self._constants.source(node.input[1]), recipe.weight)
        if recipe.weight is None or scheme is None or self._keeps(node.input[1], scheme):
            return
        rows = weight if flags.get("transB") else weight.T
        decoded = quantize_weight(np.ascontiguousarray(rows), scheme).dequantize()
        node.input[1] = self._weight(node, decoded if flags.get("transB") else decoded.T)
        node.input[0] = self._activation(node.input[0], recipe.activation, [-1])

    def _keeps(self, weight: str, scheme: Scheme) -> bool:
        return self._constants.has_codes(weight) and scheme.bits >= CODES

    def _integer_product(self, node: onnx.NodeProto) -> None:
        """A MatMulInteger, whose sums are scaled behind it: the weight in steps of its scale."""
        recipe = self._resolve(node, "matmul")
        if recipe.weight is None or recipe.weight.bits >= CODES:
            return
        if recipe.activation is None or recipe.activation.bits < CODES:
            raise NotExpressible(f"activations of other codes at '{node.name}'")
        zeros = [*node.input[2:], "", ""]
        codes = self._constants.value(node.input[1])
        zero = self._constants.value(zeros[1])
        if codes is None or codes.ndim != 2:
            return
        steps = codes.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
        decoded = quantize_weight(np.ascontiguousarray(steps.T), recipe.weight).dequantize().T
        self._become_matmul(node, self._in_steps(node.input[0], zeros[0]), decoded)

    def _in_steps(self, codes: str, zero: str) -> str:
        """The name of the floats `codes - zero`; both are integers of 8 bits."""
        floats = []
        for name in filter(None, (codes, zero)):
            floats.append(f"{PREFIX}{len(self._nodes)}/{name}")
            cast = helper.make_node("Cast", [name], floats[-1:], to=onnx.TensorProto.FLOAT)
            self._nodes.append(cast)
        if len(floats) == 1:
            return floats[0]
        steps = f"{PREFIX}{len(self._nodes)}/steps"
        self._nodes.append(helper.make_node("Sub", floats, [steps]))
        return steps

    def _packed_product(self, node: onnx.NodeProto) -> None:
        """A MatMulNBits without bias, `g_idx` or zero points of floats."""
        recipe = self._resolve(node, "matmul")
        if recipe.weight is None:
            return
        if len(node.input) > 4 and any(node.input[4:]):
            raise NotExpressible(f"a bias or g_idx at '{node.name}'")
        attributes = {a.name: a.i for a in node.attribute}
        weight = self._constants.packed(node, attributes)
        if weight is None:
            return
        if attributes["bits"] > recipe.weight.bits:
            weight = quantize_weight(weight, recipe.weight).dequantize()
        rounded = self._activation(node.input[0], recipe.activation, [-1])
        self._become_matmul(node, rounded, weight.T)

    def _become_matmul(self, node: onnx.NodeProto, x: str, weight: F32) -> None:
        """Make `node` the product of `x` and a constant K x N."""
        inputs = [x, self._weight(node, weight)]
        node.CopyFrom(helper.make_node("MatMul", inputs, list(node.output), node.name))

    def _conv(self, node: onnx.NodeProto) -> None:
        weight = self._constants.floats(node.input[1])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        recipe = self._resolve(node, "conv")
        if weight is None or groups != 1 or recipe.weight is None:
            return
        if self._keeps(node.input[1], recipe.weight):
            return
        if node.op_type == "ConvTranspose":
            strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [])
            decoded = _transposed(weight, strides or [1] * (weight.ndim - 2), recipe.weight)
        else:
            rows = weight.reshape(len(weight), -1)
            decoded = quantize_weight(rows, recipe.weight).dequantize().reshape(weight.shape)
        node.input[1] = self._weight(node, decoded)
        axes = list(range(1, weight.ndim))
        node.input[0] = self._activation(node.input[0], recipe.activation, axes)

    def _weight(self, node: onnx.NodeProto, value: F32) -> str:
        self.changed += 1
        return self._constant(f"weight/{node.output[0]}", np.ascontiguousarray(value))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, PREFIX + name))
        return PREFIX + name

    def _activation(self, x: str, scheme: Scheme | None, axes: list[int]) -> str:
        """The name of x rounded to asymmetric codes that share a scale along `axes`."""
        if scheme is None:
            return x
        if scheme.symmetric or scheme.granularity not in ("token", "image"):
            raise NotExpressible(f"activations {scheme.text}")
        if scheme.bits >= CODES and self._constants.before_codes(x) != x:
            return x  # the model's own codes stay
        x = self._constants.before_codes(x)
        key = (x, f"{scheme.bits}/{axes}")
        if key not in self._rounded:
            self._rounded[key] = self._round(x, scheme.bits, axes)
        return self._rounded[key]

    def _round(self, x: str, bits: int, axes: list[int]) -> str:
        at = f"{PREFIX}{len(self._rounded)}/"
        zero = self._constant(f"{at}0", np.float32(0))
        one = self._constant(f"{at}1", np.float32(1))
        top = self._constant(f"{at}top", np.float32(2**bits - 1))

        def emit(kind: str, *inputs: str, **attributes: object) -> str:
            name = f"{at}{kind}{len(self._nodes)}"
            self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
            return name

        def reduced(kind: str) -> str:
            if self.opset < 18:
                return emit(kind, x, axes=axes, keepdims=1)
            places = self._constant(f"{at}{kind}/axes", np.array(axes, np.int64))
            return emit(kind, x, places, keepdims=1)

        high = emit("Max", reduced("ReduceMax"), zero)
        low = emit("Min", reduced("ReduceMin"), zero)
        raw = emit("Div", emit("Sub", high, low), top)
        scale = emit("Where", emit("Equal", raw, zero), one, raw)
        offset = emit("Clip", emit("Round", emit("Neg", emit("Div", low, scale))), zero, top)
        steps = emit("Add", emit("Round", emit("Div", x, scale)), offset)
        codes = emit("Clip", steps, zero, top)
        return emit("Mul", emit("Sub", codes, offset), scale)


def _transposed(weight: F32, strides: list[int], scheme: Scheme) -> F32:
    """The weight [C, O, window] of a ConvTranspose without dilations, encoded and decoded.

    It is a convolution of stride 1 for each remainder of a place by the strides, so that a row of
    weights is that of one remainder and output channel, over C and every stride-th tap, flipped.
    """
    kernel = weight.shape[2:]
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    whole = [t * s for t, s in zip(taps, strides, strict=True)]
    padding = [(0, 0), (0, 0), *((0, w - k) for w, k in zip(whole, kernel, strict=True))]
    sizes = [size for pair in zip(taps, strides, strict=True) for size in pair]
    split = np.pad(weight, padding).reshape(*weight.shape[:2], *sizes)
    tap_axes = tuple(range(2, split.ndim, 2))
    order = (*(axis + 1 for axis in tap_axes), 1, 0, *tap_axes)
    turned = np.flip(split, tap_axes).transpose(order)
    rows = np.ascontiguousarray(turned).reshape(-1, weight.shape[0] * int(np.prod(taps)))
    decoded = quantize_weight(rows, scheme).dequantize().reshape(turned.shape)
    back = np.flip(decoded.transpose(np.argsort(order)), tap_axes)
    cut = tuple(slice(0, k) for k in kernel)
    return np.ascontiguousarray(back.reshape(*weight.shape[:2], *whole)[(..., *cut)])


class _Constants:
    """The values that the graph itself gives, through nodes that only rearrange them."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._opset = opset
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def source(self, name: str) -> str:
        """The initializer or Constant behind the nodes that rearrange it."""
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in FOLDED:
            name = maker.input[0]
            maker = self._makers.get(name)
        return name

    def has_codes(self, name: str) -> bool:
        """Whether the model has the constant as codes."""
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in FOLDED:
            if maker.op_type == "DequantizeLinear":
                return True
            maker = self._makers.get(maker.input[0])
        return False

    def before_codes(self, name: str) -> str:
        """The floats that QuantizeLinear and DequantizeLinear have rounded; else `name`."""
        decode = self._makers.get(name)
        if decode is None or decode.op_type != "DequantizeLinear":
            return name
        encode = self._makers.get(decode.input[0])
        return name if encode is None or encode.op_type != "QuantizeLinear" else encode.input[0]

    def floats(self, name: str) -> F32 | None:
        """The constant; None where a run gives it or it is not of f32."""
        value = self.value(name)
        return value if value is not None and value.dtype == np.float32 else None

    def value(self, name: str) -> NDArray[Any] | None:
        """The constant; None where a run gives it, or there is none."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        maker = self._makers.get(name)
        if maker is None:
            return None
        if maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
            return None if tensor is None else numpy_helper.to_array(tensor)
        if maker.op_type not in FOLDED:
            return None
        inputs = [self.value(each) for each in maker.input]
        return (
            None if any(each is None for each in inputs) else _evaluated(maker, inputs, self._opset)
        )

    def packed(self, node: onnx.NodeProto, attributes: dict[str, int]) -> F32 | None:
        """The weight N x K of a MatMulNBits; None where a run gives it."""
        codes, scale = self.value(node.input[1]), self.value(node.input[2])
        zero = self.value(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        if codes is None or scale is None:
            return None
        bits, n, k = attributes["bits"], attributes["N"], attributes["K"]
        blocks = codes.shape[1]
        middle = np.full((n, blocks), 1 << (bits - 1))
        zeros = middle if zero is None else _unpacked(zero.reshape(n, -1), bits)[:, :blocks]
        steps = _unpacked(codes, bits).astype(np.float32) - zeros[..., None]
        return (steps * scale.reshape(n, blocks, 1)).reshape(n, -1)[:, :k].astype(np.float32)


def _unpacked(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The codes of bytes, the lowest bits first, along the last axis."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (stored[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*stored.shape[:-1], -1)


def _evaluated(node: onnx.NodeProto, inputs: Iterable[object], opset: int) -> NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    feeds = dict(zip(node.input, inputs, strict=True))
    values = [helper.make_empty_tensor_value_info(name) for name in node.input]
    graph = helper.make_graph(
        [node], "node", values, [helper.make_empty_tensor_value_info(node.output[0])]
    )
    if node.op_type == "DequantizeLinear":
        opset = max(opset, 19)  # onnx evaluates no older one; the meaning is the same
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    result: NDArray[Any] = ReferenceEvaluator(model).run(None, feeds)[0]
    return result
