"""The values that integer-only graphs have as codes get scales of their own.

Under the recipe's word `integer`, what a quantized product reads is made of codes as far back as
rules reach (`integers.forms.form_of`): so the values that these rules read are rounded to static
codes too. Residual additions of products are followed whether or not a product reads them at once.
An `abq.fake_quantize` marks each such value: calibration fixes its scale, `quantize` makes codes
of it, and `integer-only` the integer operations between them (MobileQuant, arXiv 2408.13933).

It comes before loops are fused, while a loop is one operator of the model. What moves elements, or
takes the largest of some, has the codes of what it reads and needs none of its own.
"""

from __future__ import annotations

from typing import Any

from abqc.dialects import abq
from abqc.dialects.abq_integers import FakeQuantizeOp
from abqc.dialects.mlir import ir
from abqc.dialects.schemes import Scheme
from abqc.errors import RecipeError

from .infrastructure import Unit, defining_op, main_function, node_name, register, users
from .integers.forms import PRODUCTS, BinaryForm, FunctionForm, ProductForm, SumForm, form_of
from .integers.moves import moves_from
from .integers.products import grouped_encoding
from .loops.constant_values import is_constant
from .quantization.marks import MARK
from .quantization.product_encodings import conv_encoding, matmul_encoding, table_schemes


@register
def insert_fake_quantize(module: ir.Operation, unit: Unit) -> None:
    """Mark the values that an integer-only graph has as codes."""
    if unit.recipe is None or not unit.recipe.asks_integers:
        return
    products = _Products(table_schemes(module, unit), unit)
    marks = _Marks(unit)
    operations = [op.operation for op in main_function(module).regions[0].blocks[0].operations]
    for op in operations:
        if op.name in PRODUCTS and products.is_integer(op):
            marks.need(op.operands[0])
    for op in operations:
        if len(op.results) == 1 and products.is_added(op.results[0]):
            marks.need(op.results[0])


class _Products:
    """Which products the recipe makes of static codes, for integers; by their nodes."""

    def __init__(self, tables: dict[str, Scheme], unit: Unit) -> None:
        self.tables = tables
        self.unit = unit
        self._known: dict[str, bool] = {}

    def is_integer(self, op: ir.Operation) -> bool:
        node = ir.StringAttr(op.attributes["node"]).value
        if node not in self._known:
            self._known[node] = self._decide(op, node)
        return self._known[node]

    def _decide(self, op: ir.Operation, node: str) -> bool:
        is_conv = op.name == "abq.conv"
        if not self.unit.recipe.resolve(node, "conv" if is_conv else "matmul").integer:
            return False
        if abq.code_format(op.operands[0]) is not None:
            self.unit.refuse(node, "reads codes that the model makes: floats are between those")
            return False
        if is_conv and ir.IntegerAttr(op.attributes["groups"]).value > 1:
            return grouped_encoding(op, self.unit) is not None
        if is_conv:
            encoding = conv_encoding(op, self.unit)
        else:
            encoding = matmul_encoding(op, self.tables, self.unit)
        if encoding is not None and encoding.hadamard_block:
            self.unit.refuse(node, "is rotated, which integer-only graphs are not: it reads floats")
            return False
        return encoding is not None

    def is_added(self, value: ir.Value) -> bool:
        """Whether a loop adds the result of an integer product to another tensor, and no clip alone
        reads that."""
        op = defining_op(value)
        form = form_of(value) if op is not None and op.name == "linalg.generic" else None
        if not isinstance(form, BinaryForm) or form.kind != "arith.addf":
            return False
        if any(is_constant(operand) for operand in form.operands):
            return False
        return not _is_clipped(value, form) and any(map(self._is_result, form.operands))

    def _is_result(self, value: ir.Value) -> bool:
        """Of an integer product, moved or not."""
        while True:
            op = defining_op(value)
            sources = moves_from(value)
            if op is not None and op.name == MARK:
                sources = [op.operands[0]]
            if len(sources) != 1:
                break
            (value,) = sources
        return op is not None and op.name in PRODUCTS and self.is_integer(op)


def _is_clipped(value: ir.Value, form: BinaryForm) -> bool:
    """Whether the only reader of a sum is a clip, which its codes are made with."""
    readers = [user for user in users(value) if user.name != "tensor.dim"]
    if len(readers) != 1 or len(readers[0].results) != 1:
        return False
    clipped = form_of(readers[0].results[0])
    return isinstance(clipped, BinaryForm) and clipped.op == form.op


def _is_of_floats(value: ir.Value) -> bool:
    """Whether no codes are behind a value: what is computed from such is computed in floats, and
    becomes codes once."""
    op = defining_op(value)
    if op is None or is_constant(value):
        return True
    if op.name == MARK:
        return False
    sources, form = moves_from(value), None
    if not sources:
        form = form_of(value)
        if form is None:
            return True
        if isinstance(form, ProductForm):
            return False
        sources = list(form.operands) if isinstance(form, BinaryForm) else [form.source]
    found = [_is_of_floats(source) for source in sources if not is_constant(source)]
    # A factor that floats make, such as that of a normalization, wants more than a static scale.
    is_gated = isinstance(form, BinaryForm) and form.kind == "arith.mulf"
    return any(found) if is_gated else all(found)


class _Marks:
    """Marks that have been made; symbols are unique."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.symbols: set[str] = set()
        self.marked: set[ir.Value] = set()

    def need(self, value: ir.Value) -> None:
        """See to it that `value` has codes, and what these are made of."""
        pending = [value]
        while pending:
            pending += self._mark(pending.pop())

    def _mark(self, value: ir.Value) -> list[ir.Value]:
        """Mark a value, or what it is a move of; the values that need codes then."""
        sources = moves_from(value)
        if len(sources) == 1:
            return sources
        op = defining_op(value)
        if value in self.marked or (op is not None and op.name == MARK) or is_constant(value):
            return []
        form = None if _is_of_floats(value) else form_of(value)
        recipe = self.unit.recipe.resolve(_node(value, self.unit), "matmul")
        if not recipe.integer or not abq.shape(value):
            return []
        self._insert(value, recipe)
        if isinstance(form, BinaryForm):
            return list(form.operands)
        if isinstance(form, FunctionForm | SumForm):
            return [form.source]
        return sources  # of a concatenation

    def _insert(self, value: ir.Value, recipe: Any) -> None:
        scheme: Scheme = recipe.activation
        node = _node(value, self.unit)
        op = defining_op(value)
        if scheme.format.indexed or scheme.format.kind == "binary":
            raise RecipeError(
                f"{recipe.rule} asks for integers of {scheme}, which are none",
                node=node,
                hint="give the rule integers of two bits and more, as in a8:tensor",
            )
        point = (
            ir.InsertionPoint.at_block_begin(ir.BlockArgument(value).owner)
            if op is None
            else ir.InsertionPoint.after(op)
        )
        location = ir.Location.unknown() if op is None else op.location
        with point, location:
            texts = (node, self._symbol(node), scheme.text)
            mark = FakeQuantizeOp(value, *map(ir.StringAttr.get, texts), value.type)
        self.marked.add(value)
        value.replace_all_uses_except(mark.result, mark.operation)

    def _symbol(self, node: str) -> str:
        """Of a mark; several values may come of one node."""
        symbol, count = f"{node}.result", 1
        while symbol in self.symbols:
            count += 1
            symbol = f"{node}.result.{count}"
        self.symbols.add(symbol)
        return symbol


def _node(value: ir.Value, unit: Unit) -> str:
    """The node that makes a value, or the name of the model's input that it is."""
    op = defining_op(value)
    if op is None:
        return str(unit.inputs[ir.BlockArgument(value).arg_number].name)
    return node_name(op) or op.name
