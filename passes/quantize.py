"""The recipe gives formats to operations: float matmuls become matmuls of codes.

A model that is quantized already has weights of codes in the store, and its activations come as
`abq.quantize` with scales of its own. Both are kept exactly, unless the recipe asks for fewer bits
or a rotation, which encode anew what the codes stand for.

Weights are not encoded here: an `Encoding` records how, and `pack-layouts` encodes one weight at a
time, so that the peak of memory stays near the largest layer. A rotation H is put before the
activation's quantization and folded into the weight, (x H^T)(W H^T)^T = x W^T (QuaRot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from abqc.dialects import abq, hadamard
from abqc.dialects.formats import (
    F32,
    Half,
    QuantizedTensor,
    Scheme,
    parse_scheme,
    quantize_weight,
)
from abqc.dialects.mlir import arith, ir
from abqc.dialects.schemes import clipped_for_gaussian
from abqc.errors import RecipeError

from .constant_values import symbol_of
from .infrastructure import Unit, defining_op, register, walk
from .rotate_stream import ROTATED, TIED

# Tables below this many weights stay float: a table of token types (2 x 384) is added to every row,
# so that its error is a bias of the whole model, and it has nothing to save.
SMALL_TABLE = 16384

SCALE_TYPES = {"f16": ir.F16Type, "e8m0": ir.Float8E8M0FNUType, "e4m3": ir.Float8E4M3FNType}

# The attribute of a matmul or convolution that says what a GPU rounds float activations to.
HALF = "half"
DEFAULT_HALF: Half = "f16"


@dataclass(frozen=True)
class Encoding:
    """How a stored weight becomes codes; `imported` ones are kept as the model has them.

    `calibrated` ones lie in the store under `symbol` once calibration has come to them.
    """

    source: str
    scheme: Scheme
    hadamard_block: int = 0
    search: bool = False
    imported: bool = False
    calibrated: bool = False

    @property
    def symbol(self) -> str:
        """The name of the encoded weight: equal encodings of one weight have one."""
        parts = [self.source, self.scheme.text]
        if self.hadamard_block:
            parts.append(f"h{self.hadamard_block}")
        flags = ("search", "imported", "calibrated")
        parts += [word for word in flags if getattr(self, word)]
        return ".".join(parts)

    def encode(self, store: Any, weight: F32 | None = None) -> QuantizedTensor:
        """The codes; ValueError where the weight has none (NaN, infinities).

        `weight` is what `weight(store)` gave, where that is known: it may be long to compute.
        """
        if self.imported:
            return store.quantized(self.source)
        if self.calibrated and self.symbol in store:
            return store.quantized(self.symbol)
        weight = self.weight(store) if weight is None else weight
        return quantize_weight(weight, self.scheme, search=self.search)

    def weight(self, store: Any) -> F32:
        """What is encoded: the float weight [N, K], rotated where the activations are."""
        stored = store.get(self.source).reshape(store.shape(self.source)[0], -1)
        weight: F32 = stored.astype(np.float32, copy=False)
        return hadamard.fold(weight, self.hadamard_block) if self.hadamard_block else weight


def _encoding(
    symbol: str,
    scheme: Scheme | None,
    block: int,
    unit: Unit,
    *,
    search: bool = False,
    calibrated: bool = False,
) -> Encoding | None:
    """How to encode a weight for which the recipe asks `scheme`; None if it stays float.

    Weights that the model has as codes are kept exactly, unless the recipe asks for fewer bits or
    a rotation changes them.
    """
    imported = unit.store.quantized(symbol)
    if (
        imported is not None
        and not block
        and (scheme is None or scheme.bits >= imported.scheme.bits)
    ):
        return Encoding(symbol, imported.scheme, imported=True)
    if scheme is None:
        return None
    return Encoding(symbol, scheme, block, search, calibrated=calibrated)


@register
def quantize(module: ir.Operation, unit: Unit) -> None:
    """Give every matmul and table the formats that the recipe asks for."""
    tables = table_schemes(module, unit)
    for op in walk(module, "abq.matmul"):
        _quantize_matmul(op, tables, unit)
    for op in walk(module, "abq.conv"):
        _quantize_conv(op, unit)
    for op in walk(module, "abq.gather"):
        _quantize_gather(op, unit)


def _node(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["node"]).value


def _codes(
    encoding: Encoding, shape: list[int], unit: Unit
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """The codes, scales and zero points of an encoded weight, as `abq.weight` values."""
    unit.encodings[encoding.symbol] = encoding
    scheme = encoding.scheme
    code = abq.CodeType.get(ir.StringAttr.get(scheme.text))
    codes = _weight(encoding.symbol, ir.RankedTensorType.get(shape, code))
    groups = [shape[0], scheme.n_groups(shape[1])]
    exact = encoding.imported and encoding.encode(unit.store).scale.dtype.itemsize == 4
    scale_type = ir.F32Type.get() if exact else SCALE_TYPES[scheme.scale].get()
    scale = _weight(encoding.symbol + ".scale", ir.RankedTensorType.get(groups, scale_type))
    if scheme.symmetric:
        return codes, scale, None
    ui8 = ir.IntegerType.get_signless(8)
    return codes, scale, _weight(encoding.symbol + ".zero", ir.RankedTensorType.get(groups, ui8))


def _weight(symbol: str, type_: ir.Type) -> ir.Value:
    return abq.WeightOp(ir.StringAttr.get(symbol), type_).result


def table_schemes(module: ir.Operation, unit: Unit) -> dict[str, Scheme]:
    """The formats of quantized tables by symbol.

    A head tied to its embedding takes the table's format and no rotation, so that the table is
    stored once: 8 bits per row are 8 bits per output channel.
    """
    schemes: dict[str, Scheme] = {}
    for op in walk(module, "abq.gather"):
        symbol = symbol_of(op.opview.table)
        scheme = _table_scheme(op, unit)
        if symbol is not None and scheme is not None:
            schemes[symbol] = scheme
    return schemes


def _table_scheme(op: ir.Operation, unit: Unit) -> Scheme | None:
    rows, columns = abq.shape(op.opview.table)
    recipe = _resolve(unit, _node(op), "gather")
    if recipe.weight is not None and recipe.weight.format.kind == "trellis":
        raise RecipeError(
            f"{recipe.rule} gives a table a trellis code, of which no single row can be read",
            node=_node(op),
            hint="give it a scalar format, as in embed=w8",
        )
    return recipe.weight if rows * columns >= SMALL_TABLE else None


def matmul_encoding(op: ir.Operation, tables: dict[str, Scheme], unit: Unit) -> Encoding | None:
    """How the weight of an `abq.matmul` becomes codes; None if it stays float or has codes.

    `tables` are the formats of quantized tables (`table_schemes`), with which a tied head is read.
    """
    symbol = symbol_of(op.operands[1])
    if symbol is None or abq.code_format(op.operands[1]) is not None:
        return None
    recipe = _resolve(unit, _node(op), "matmul")
    tied = symbol in tables
    table = ir.StringAttr(op.attributes[TIED]).value if TIED in op.attributes else symbol
    rotates = recipe.rotate and ROTATED not in op.attributes and table not in tables
    block = _rotation(op, recipe) if rotates else 0
    scheme = tables.get(table, recipe.weight) if recipe.weight is not None else None
    return _encoding(
        symbol,
        scheme,
        block,
        unit,
        search=recipe.search,
        calibrated=recipe.gptq and not tied and not _is_nested(op),
    )


def matmul_activation(op: ir.Operation, encoding: Encoding, unit: Unit) -> Scheme | None:
    """The format in which an `abq.matmul` reads floats, clipped where the recipe says so and they
    are rotated; None if they stay float."""
    recipe = _resolve(unit, _node(op), "matmul")
    activation: Scheme | None = recipe.activation
    rotated = encoding.hadamard_block or ROTATED in op.attributes
    if activation is None or not (recipe.clip and rotated):
        return activation
    return clipped_for_gaussian(activation, abq.shape(op.opview.w)[1])


def _rotation(op: ir.Operation, recipe: Any) -> int:
    """The block of the Hadamard transform before the product; 0 where there is none for its K."""
    if recipe.activation is None:
        raise RecipeError(
            f"{recipe.rule} rotates activations that stay float",
            node=_node(op),
            hint="give the activations a width, as in w4a4 rotate",
        )
    block = hadamard.block_size(abq.shape(op.operands[1])[1])
    return block if block > 1 else 0


def _is_nested(op: ir.Operation) -> bool:
    """Whether a branch or a loop holds the operation: calibration sees only what always runs."""
    parent = op.parent
    return parent is not None and parent.name != "func.func"


def _quantize_matmul(op: ir.Operation, tables: dict[str, Scheme], unit: Unit) -> None:
    view = op.opview
    if symbol_of(view.w) is None or abq.code_format(view.w) is not None:
        return
    recipe = _resolve(unit, _node(op), "matmul")
    n, k = abq.shape(view.w)
    encoding = matmul_encoding(op, tables, unit)
    if encoding is None:
        _without_codes(op)
        return
    block = encoding.hadamard_block
    with ir.InsertionPoint(op), op.location:
        codes, scale, zero = _codes(encoding, [n, k], unit)
        x, x_scale, x_zero = view.x, view.x_scale, view.x_zero
        if not _keeps_codes(view, recipe, block):
            x, x_scale, x_zero = float_source(view.x), None, None
            if recipe.activation is not None:
                if block:
                    i64 = ir.IntegerType.get_signless(64)
                    x = abq.HadamardOp(x, ir.IntegerAttr.get(i64, block), x.type).result
                sizes = abq.shape(x)[:-1]
                activation = matmul_activation(op, encoding, unit)
                assert activation is not None
                x, x_scale, x_zero = _quantize_activation(
                    x, activation, sizes, encoding, _node(op), unit
                )
        new = abq.MatmulOp(
            x,
            codes,
            op.attributes["node"],
            view.result.type,
            bias=view.bias,
            x_scale=x_scale,
            x_zero=x_zero,
            w_scale=scale,
            w_zero=zero,
        )
        _keep_half(new.operation, recipe)
        if ROTATED in op.attributes:
            new.operation.attributes[ROTATED] = op.attributes[ROTATED]
    op.results[0].replace_all_uses_with(new.result)
    op.erase()


def _keeps_codes(view: Any, recipe: Any, block: int) -> bool:
    """Whether the codes that the model gives its activation are what the product takes."""
    text = abq.code_format(view.x)
    if text is None or block:
        return False
    return recipe.activation is None or recipe.activation.bits >= parse_scheme(text).bits


def float_source(x: ir.Value) -> ir.Value:
    """The floats that an activation of codes was made of; others are floats themselves."""
    if abq.code_format(x) is None:
        return x
    quantized = defining_op(x)
    assert quantized is not None and quantized.name == "abq.quantize"
    return quantized.operands[0]


def _without_codes(op: ir.Operation) -> None:
    """A weight stays float, so that no kernel takes the activation's codes."""
    view = op.opview
    if abq.code_format(view.x) is None:
        return
    kept = {"bias": view.bias} if view.bias is not None else {}
    with ir.InsertionPoint(op), op.location:
        x = float_source(view.x)
        if op.name == "abq.matmul":
            new = abq.MatmulOp(x, view.w, op.attributes["node"], view.result.type, **kept)
        else:
            names = ("node", "strides", "dilations", "pads", "groups")
            new = abq.ConvOp(
                x, view.w, *(op.attributes[name] for name in names), view.result.type, **kept
            )
    op.results[0].replace_all_uses_with(new.result)
    op.erase()


def _keep_half(op: ir.Operation, recipe: Any) -> None:
    """Say what a GPU rounds float activations to, where the recipe does not leave it at f16."""
    if recipe.activation is None and recipe.half != DEFAULT_HALF:
        op.attributes[HALF] = ir.StringAttr.get(recipe.half)


def _quantize_activation(
    x: ir.Value, scheme: Scheme, scales: list[int], encoding: Encoding, node: str, unit: Unit
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The codes of `x`, and its scales and zero points.

    These are of shape `scales`, or of one element, a constant, where all of the tensor has one.
    RecipeError where calibration has not fixed that one.
    """
    code = abq.CodeType.get(ir.StringAttr.get(scheme.text))
    static: dict[str, ir.Value] = {}
    if scheme.granularity == "tensor":
        symbol = static_scale_symbol(encoding, node)
        if symbol not in unit.store:
            raise RecipeError(
                f"{scheme} has one scale for a whole tensor, which only calibration fixes",
                node=node,
                hint=f"give data with --calib, or write a{scheme.format.width} for one scale a row",
            )
        scales = [1]
        scale, zero = unit.store.get(symbol)
        static = {
            "x_scale": _constant(np.array([scale], np.float32)),
            "x_zero": _constant(np.array([zero], np.int32)),
        }
    quantized = abq.QuantizeOp(
        x,
        ir.RankedTensorType.get(abq.shape(x), code),
        ir.RankedTensorType.get(scales, ir.F32Type.get()),
        ir.RankedTensorType.get(scales, ir.IntegerType.get_signless(32)),
        **static,
    )
    return quantized.codes, quantized.scale, quantized.zero


def static_scale_symbol(encoding: Encoding, node: str) -> str:
    """Where the store has, as f64, the scale and zero point of what a node's weight meets."""
    return f"{encoding.symbol}.activations of {node}"


def _constant(array: np.ndarray) -> ir.Value:
    attribute = ir.DenseElementsAttr.get(array)
    return arith.ConstantOp(attribute.type, attribute).result


def _resolve(unit: Unit, node: str, kind: str) -> Any:
    """What the recipe asks for a node; RecipeError for options without a kernel."""
    recipe = unit.recipe.resolve(node, kind)
    if recipe.kv_bits is not None:
        raise RecipeError(
            f"{recipe.rule} asks for kvN, which no pass implements",
            node=node,
            hint="remove kvN from the rule",
        )
    return recipe


def conv_encoding(op: ir.Operation, unit: Unit) -> Encoding | None:
    """How the weight of an `abq.conv` becomes codes; None if it stays float or has codes."""
    view = op.opview
    symbol = symbol_of(view.w)
    if symbol is None or view.w_scale is not None or ir.IntegerAttr(view.groups).value > 1:
        return None
    recipe = _resolve(unit, _node(op), "conv")
    return _encoding(
        symbol,
        recipe.weight,
        0,
        unit,
        search=recipe.search,
        calibrated=recipe.gptq and not _is_nested(op),
    )


def _quantize_conv(op: ir.Operation, unit: Unit) -> None:
    """A convolution keeps its form; its activations have one scale per image (or per tensor)."""
    view = op.opview
    node, symbol = _node(op), symbol_of(view.w)
    if symbol is None or view.w_scale is not None:
        return
    if ir.IntegerAttr(view.groups).value > 1:
        _without_codes(op)
        return
    recipe = _resolve(unit, node, "conv")
    encoding = conv_encoding(op, unit)
    if encoding is None:
        _without_codes(op)
        return
    shape = abq.shape(view.w)
    k = 1
    for size in shape[1:]:
        k *= size
    with ir.InsertionPoint(op), op.location:
        codes, scale, zero = _codes(encoding, [shape[0], k], unit)
        code = ir.RankedTensorType(codes.type).element_type
        codes = abq.WeightOp(
            ir.StringAttr.get(encoding.symbol), ir.RankedTensorType.get(shape, code)
        ).result
        x, x_scale, x_zero = view.x, view.x_scale, view.x_zero
        if not _keeps_codes(view, recipe, 0):
            x, x_scale, x_zero = float_source(view.x), None, None
            if recipe.activation is not None:
                x, x_scale, x_zero = _quantize_activation(
                    x,
                    recipe.activation,
                    abq.shape(x)[:1],
                    encoding,
                    node,
                    unit,
                )
        new = abq.ConvOp(
            x,
            codes,
            op.attributes["node"],
            op.attributes["strides"],
            op.attributes["dilations"],
            op.attributes["pads"],
            op.attributes["groups"],
            view.result.type,
            bias=view.bias,
            x_scale=x_scale,
            x_zero=x_zero,
            w_scale=scale,
            w_zero=zero,
        )
        _keep_half(new.operation, recipe)
    op.results[0].replace_all_uses_with(new.result)
    op.erase()


def _quantize_gather(op: ir.Operation, unit: Unit) -> None:
    symbol = symbol_of(op.operands[0])
    view = op.opview
    if symbol is None or view.scale is not None:
        return
    encoding = _encoding(symbol, _table_scheme(op, unit), 0, unit)
    if encoding is None:
        return
    with ir.InsertionPoint(op), op.location:
        codes, scale, zero = _codes(encoding, abq.shape(view.table), unit)
        new = abq.GatherOp(
            codes, view.indices, op.attributes["node"], view.result.type, scale=scale, zero=zero
        )
    op.results[0].replace_all_uses_with(new.result)
    op.erase()
