"""What the recipe gives products: how their weights become codes, and what they read."""

from __future__ import annotations

import math
from typing import Any

from abqc.dialects import abq, hadamard
from abqc.dialects.formats import Scheme, parse_scheme
from abqc.dialects.mlir import ir
from abqc.dialects.schemes import clipped_for_gaussian
from abqc.errors import RecipeError

from ..infrastructure import Unit, defining_op, walk
from ..loops.constant_values import is_constant, symbol_of
from ..rotate_stream import ROTATED, TIED
from .calibrated import balance_symbol
from .encoding import Encoding, encoding_of

# Tables below this many weights stay float: a table of token types (2 x 384) is added to every row,
# so that its error is a bias of the whole model, and it has nothing to save.
SMALL_TABLE = 16384

# The largest block in which activations that stay float are rotated; a power of two.
FLOAT_BLOCK = 128


def node_of(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["node"]).value


def table_schemes(module: ir.Operation, unit: Unit) -> dict[str, Scheme]:
    """The formats of quantized tables by symbol.

    A head tied to its embedding takes the table's format and no rotation, so that the table is
    stored once: 8 bits per row are 8 bits per output channel.
    """
    schemes: dict[str, Scheme] = {}
    for op in walk(module, "abq.gather"):
        symbol = symbol_of(op.opview.table)
        scheme = table_scheme(op, unit)
        if symbol is not None and scheme is not None:
            schemes[symbol] = scheme
    return schemes


def table_scheme(op: ir.Operation, unit: Unit) -> Scheme | None:
    rows, columns = abq.shape(op.opview.table)
    recipe = unit.recipe.resolve(node_of(op), "gather")
    if recipe.weight is not None and recipe.weight.format.kind == "trellis":
        raise RecipeError(
            f"{recipe.rule} gives a table a trellis code, of which no single row can be read",
            node=node_of(op),
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
    recipe = unit.recipe.resolve(node_of(op), "matmul")
    tied = symbol in tables
    table = _table_of(op, symbol)
    rotates = recipe.rotate and ROTATED not in op.attributes and table not in tables
    block = _rotation(op, recipe) if rotates else 0
    scheme = tables.get(table, recipe.weight) if recipe.weight is not None else None
    apart = tied or _is_nested(op)  # from what calibration sees
    balanced = recipe.balance and not apart and abq.code_format(op.operands[0]) is None
    return encoding_of(
        symbol,
        scheme,
        block,
        unit,
        search=recipe.search,
        calibrated=(recipe.gptq or recipe.learn) and not apart,
        reads_floats=abq.code_format(op.operands[0]) is None,
        balance=balance_symbol(symbol, node_of(op)) if balanced else "",
    )


def overridden(op: ir.Operation, encoding: Encoding, unit: Unit) -> str | None:
    """What a rule with a pattern asks for the weight of an `abq.matmul` and does not get, because
    the table that it is tied to decides; None where it gets it."""
    recipe = unit.recipe.resolve(node_of(op), "matmul")
    asked = recipe.weight
    if not recipe.named or encoding.imported or asked in (None, encoding.scheme):
        return None
    return (
        f"has its weights in {encoding.scheme}, the format of the embedding table that it is tied "
        f"to, and not in {asked} as {recipe.rule} says: embed=, for the table, gives both another"
    )


def _table_of(op: ir.Operation, symbol: str) -> str:
    """The symbol of the table that a head is tied to, if it is: that of its weight, or, where that
    was rotated, of what it was made of."""
    return ir.StringAttr(op.attributes[TIED]).value if TIED in op.attributes else symbol


def matmul_activation(op: ir.Operation, encoding: Encoding, unit: Unit) -> Scheme | None:
    """The format in which an `abq.matmul` reads floats, clipped where the recipe says so and they
    are rotated; None if they stay float."""
    recipe = unit.recipe.resolve(node_of(op), "matmul")
    activation: Scheme | None = recipe.activation
    rotated = encoding.hadamard_block or ROTATED in op.attributes
    if activation is None or not (recipe.clip and rotated):
        return activation
    return clipped_for_gaussian(activation, abq.shape(op.opview.w)[1])


def conv_encoding(op: ir.Operation, unit: Unit) -> Encoding | None:
    """How the weight of an `abq.conv` becomes codes; None if it stays float or has codes."""
    view = op.opview
    symbol = symbol_of(view.w)
    if symbol is None or view.w_scale is not None or ir.IntegerAttr(view.groups).value > 1:
        return None
    recipe = unit.recipe.resolve(node_of(op), "conv")
    return encoding_of(
        symbol,
        recipe.weight,
        0,
        unit,
        search=recipe.search,
        calibrated=recipe.gptq and not _is_nested(op),
    )


def unbalanced(op: ir.Operation, encoding: Encoding, unit: Unit) -> str | None:
    """Why calibration finds no factors for an `abq.matmul` although the recipe asks for them; None
    if it does, or is not asked."""
    if not unit.recipe.resolve(node_of(op), "matmul").balance or encoding.balance:
        return None
    if encoding.imported:
        return "its weight is codes of the model"
    if abq.code_format(op.opview.x) is not None:
        return "it reads codes of the model"
    if _is_nested(op):
        return "calibration sees no branches and loops"
    return "its weight is stored once with the embedding table's"


def takes_bias(view: Any) -> bool:
    """Whether calibration may add to the bias of a product or convolution."""
    return view.bias is None or is_constant(view.bias)


def takes_shift(op: ir.Operation, encoding: Encoding, unit: Unit) -> bool:
    """Whether calibration takes the mean off the rows that an `abq.matmul` reads: the recipe says
    so, and they are quantized here, each with a scale of its own."""
    recipe = unit.recipe.resolve(node_of(op), "matmul")
    if not recipe.shift or recipe.activation is None or not takes_bias(op.opview):
        return False
    static = recipe.activation.granularity == "tensor"
    return not static and not keeps_codes(op.opview, recipe, encoding.hadamard_block)


def keeps_codes(view: Any, recipe: Any, block: int) -> bool:
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


def _rotation(op: ir.Operation, recipe: Any) -> int:
    """The block of the Hadamard transform before the product; 0 where there is none for its K.

    Activations that stay float are transformed by a product with the matrix, which short blocks
    keep small beside the product itself.
    """
    k = abq.shape(op.operands[1])[1]
    floats = recipe.activation is None
    block = math.gcd(k, FLOAT_BLOCK) if floats else hadamard.block_size(k)
    return block if block > 1 else 0


def _is_nested(op: ir.Operation) -> bool:
    """Whether a branch or a loop holds the operation: calibration sees only what always runs."""
    parent = op.parent
    return parent is not None and parent.name != "func.func"
