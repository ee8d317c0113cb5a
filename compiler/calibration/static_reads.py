"""Static scales beside those of calibrated weights: of what selective scans read, of what products
read whose weights calibration does not encode (tied heads, `rtn`, codes of the model), and of the
values that integer-only graphs have as codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from abqc.compiler.recipe import Kind
from abqc.dialects.abq_recurrent import SCANNED
from abqc.dialects.formats import Scheme
from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from abqc.passes.quantization.calibrated import static_scale_symbol
from abqc.passes.quantization.marks import MARK, mark_behind, mark_symbol
from abqc.passes.quantization.product_encodings import conv_encoding, float_source, matmul_encoding
from abqc.passes.quantization.scans import scan_activation, scan_node, scan_scale_symbol
from numpy.typing import NDArray

from .dataflow import DataFlow, ValueId
from .kept import KeptCodes
from .patches import Patches
from .ranges import Range, Static
from .runs import token_rows
from .segments import name_of

Array = NDArray[Any]


@dataclass(frozen=True)
class StaticRead:
    """A value that gets a static scale, which the store has under `symbol`.

    `at` is the position of the operation that reads it; `read` is its id, None for an input of the
    model, whose name is `name`. `block` is that of the Hadamard transform before the quantization;
    `patches` are the windows of a convolution. A read that `cuts` counts as a place where the model
    may be cut into segments.
    """

    at: int
    symbol: str
    read: ValueId | None
    name: str
    static: Static
    block: int = 0
    patches: Patches | None = None
    cuts: bool = True

    def rows(self, value: Array, mask: Array | None) -> NDArray[np.float32]:
        return token_rows(value, mask) if self.patches is None else self.patches.rows(value)

    def take_kept(self, kept: KeptCodes, store: WeightStore) -> bool:
        """Whether an earlier calibration of the same has fixed the scale; it is stored."""
        pair = kept.get_scale(self.symbol)
        if pair is not None:
            store.add(self.symbol, np.array(pair))
        return pair is not None


def static_of(unit: Unit, node: str, kind: Kind) -> Static | None:
    """The static format that the recipe gives what a node reads; None if it has none."""
    recipe = unit.recipe.resolve(node, kind)
    if recipe.activation is None or recipe.activation.granularity != "tensor":
        return None
    return Static(recipe.activation, recipe.range)


def static_reads(flow: DataFlow, unit: Unit, tables: dict[str, Scheme]) -> list[StaticRead]:
    """All of a model, in the order of operations; `tables` are its quantized tables."""
    found: list[StaticRead] = []
    with flow.operations[-1].context:
        for at, op in enumerate(flow.operations):
            if op.name == "abq.selective_scan":
                found += _of_scan(at, op, flow, unit)
            elif op.name in ("abq.matmul", "abq.conv"):
                found += _of_product(at, op, flow, unit, tables)
            elif op.name == MARK:
                found += _of_mark(at, op, flow, unit)
    return found


def places_of(static: Sequence[StaticRead], products: Mapping[int, str]) -> dict[int, str]:
    """The positions that segments are cut between, ascending, with the names of what is read there.
    `products` are those of the products that are calibrated.

    Many values of an integer-only graph have scales: they do not cut. Those behind the last product
    are in its segment.
    """
    places = {read.at: read.name for read in static if read.cuts} | dict(products)
    last = max(places, default=-1)
    name = places.get(last, "")
    behind = {read.at: name for read in static if read.at > last}
    return dict(sorted((places | behind).items()))


def _of_mark(at: int, op: ir.Operation, flow: DataFlow, unit: Unit) -> Iterator[StaticRead]:
    node = ir.StringAttr(op.attributes["node"]).value
    static = static_of(unit, node, "matmul")
    if static is None:
        return
    id_ = flow.id_of(op.opview.x)
    name = name_of(op.opview.x, id_, unit.inputs)
    yield StaticRead(at, mark_symbol(op), id_, name, static, cuts=False)


def _of_scan(at: int, op: ir.Operation, flow: DataFlow, unit: Unit) -> Iterator[StaticRead]:
    node, scheme = scan_node(op), scan_activation(op, unit.recipe)
    if scheme is None:
        return
    static = Static(scheme, unit.recipe.resolve(node, "scan").range)
    for operand in SCANNED:
        value = getattr(op.opview, operand)
        id_ = flow.id_of(value)
        name = name_of(value, id_, unit.inputs)
        yield StaticRead(at, scan_scale_symbol(node, operand), id_, name, static)


def _of_product(
    at: int, op: ir.Operation, flow: DataFlow, unit: Unit, tables: dict[str, Scheme]
) -> Iterator[StaticRead]:
    is_conv = op.name == "abq.conv"
    encoding = conv_encoding(op, unit) if is_conv else matmul_encoding(op, tables, unit)
    node = ir.StringAttr(op.attributes["node"]).value
    static = static_of(unit, node, "conv" if is_conv else "matmul")
    if encoding is None or encoding.calibrated or encoding.balance or static is None:
        return
    value = float_source(op.opview.x)
    if mark_behind(value, static.scheme) is not None:
        return
    id_ = flow.id_of(value)
    name, symbol = name_of(value, id_, unit.inputs), static_scale_symbol(encoding, node)
    patches = Patches.of(op) if is_conv else None
    yield StaticRead(at, symbol, id_, name, static, encoding.hadamard_block, patches)


@dataclass
class StaticRanges:
    """What is read, over all batches."""

    reads: Sequence[StaticRead]
    _ranges: dict[str, Range] = field(default_factory=dict)  # by symbol

    def add(self, values: Callable[[str], Array], mask: Array | None) -> None:
        """Take in a batch: the values by their names, and the tokens that count."""
        for read in self.reads:
            range_ = self._ranges.setdefault(read.symbol, Range(read.block))
            range_.add(read.rows(values(read.name), mask))

    def merge(self, other: StaticRanges) -> None:
        """Take in other batches of the same reads."""
        for symbol, range_ in other._ranges.items():
            self._ranges.setdefault(symbol, Range(range_.block)).merge(range_)

    def fix(self, store: WeightStore, kept: KeptCodes) -> None:
        """Choose and store the scales and zero points."""
        for read in self.reads:
            scale, zero = self._ranges[read.symbol].choose(read.static)
            store.add(read.symbol, np.array([scale, zero]))
            kept.put_scale(read.symbol, scale, zero)
