"""The products of a model that calibration encodes, and what it has to know of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.formats import Scheme
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit
from abqc.passes.quantization.calibrated import bias_symbol, shift_symbol
from abqc.passes.quantization.encoding import Encoding
from abqc.passes.quantization.product_encodings import (
    conv_encoding,
    float_source,
    matmul_activation,
    matmul_encoding,
    table_schemes,
    takes_bias,
    takes_shift,
)
from numpy.typing import NDArray

from .dataflow import DataFlow, ValueId
from .patches import Patches
from .ranges import Static
from .residual import sum_of
from .runs import token_rows
from .segments import name_of
from .static_reads import static_of

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """What products read as rows: the name of a value, and the windows of a convolution.

    What a product lacks of the float model's outputs is found in what its rows lack of the float
    model's, or, where `stream` names one, in the sum that its outputs are a term of.
    """

    name: str
    patches: Patches | None = None
    stream: str | None = None

    def of(self, value: Array, mask: Array | None) -> NDArray[np.float32]:
        """The rows [R, K] of a batch's value, without those that the mask hides."""
        return token_rows(value, mask) if self.patches is None else self.patches.rows(value)


@dataclass(frozen=True)
class Product:
    """A product to calibrate: where it is, what it reads, how its weight [N, K] is encoded.

    `read` is the id of the value; None for an input of the model, whose name is `name`. `total` is
    the residual stream that the output is added to, in the same segment, None without one.
    `patches` are the windows of a convolution; they make the rows that are its inputs. `static` is
    what activations are that have one scale for all, which calibration fixes. `takes_bias`: what
    its outputs lack in the mean can be added to its bias; `shifts`: its inputs come without their
    means. `feeds_back`: its weight is encoded with error feedback, else to the nearest codes;
    `learns`: what it can, it learns before. `activation` is the format of what it reads, None for
    floats; `per_channel`: its static scale is one for each channel.
    """

    at: int
    node: str
    read: ValueId | None
    name: str
    shape: tuple[int, int]
    encoding: Encoding
    total: ValueId | None
    patches: Patches | None = None
    static: Static | None = None
    takes_bias: bool = True
    shifts: bool = False
    feeds_back: bool = True
    learns: bool = False
    activation: Scheme | None = None
    per_channel: bool = False

    @property
    def balances(self) -> bool:
        """Whether what it reads is divided by factors that calibration looks for."""
        return bool(self.encoding.balance)

    @property
    def result(self) -> ValueId:
        """What it puts out."""
        return ValueId(self.at, 0)

    @property
    def rows(self) -> Rows:
        return Rows(self.name, self.patches)

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by in a module of its own: its node and its weight."""
        return self.node, self.encoding.source

    @property
    def name_of_codes(self) -> str:
        """What its codes are kept by: products that share a weight have biases of their own."""
        return f"{self.encoding.symbol} of {self.node}"


def products_of(flow: DataFlow, module: ir.Operation, unit: Unit) -> list[Product]:
    """What the recipe wants encoded or balanced by calibration, in the order of the operations."""
    tables = table_schemes(module, unit)
    found = []
    for at, op in enumerate(flow.operations):
        encoding = None
        if op.name == "abq.matmul":
            encoding = matmul_encoding(op, tables, unit)
        elif op.name == "abq.conv":
            encoding = conv_encoding(op, unit)
        if encoding is not None and (encoding.calibrated or encoding.balance):
            found.append(_product(at, op, encoding, flow, unit))
    return found


def stand_ins(module: ir.Operation, unit: Unit) -> dict[str, NDArray[np.float32]]:
    """Arrays in the place of the biases, shifts and balances that calibration adds to the weight
    store, by symbol; products that read the same rows have one shift and one balance."""
    found: dict[str, NDArray[np.float32]] = {}
    shared: dict[Rows, int] = {}  # a number for what is shared, so that it is other numbers
    for product in products_of(DataFlow(module), module, unit):
        n, k = product.shape
        if product.takes_bias and product.encoding.calibrated:
            found[bias_symbol(product.encoding, product.node)] = np.zeros(n, np.float32)
        number = shared.setdefault(product.rows, len(shared) + 1)
        if product.balances:
            found[product.encoding.balance] = np.full(k, 1 + number, np.float32)
        if product.shifts:
            symbol = shift_symbol(product.encoding, product.node)
            found[symbol] = np.full(k, number, np.float32)
    return found


def _product(at: int, op: ir.Operation, encoding: Encoding, flow: DataFlow, unit: Unit) -> Product:
    reads = float_source(op.opview.x)
    id_ = flow.id_of(reads)
    name = name_of(reads, id_, unit.inputs)
    node = ir.StringAttr(op.attributes["node"]).value
    biased = takes_bias(op.opview)
    if op.name == "abq.conv":
        n, *window = abq.shape(op.opview.w)
        static = static_of(unit, node, "conv")
        return Product(
            *(at, node, id_, name, (n, prod(window)), encoding, None, Patches.of(op), static),
            takes_bias=biased,
        )
    result = op.results[0]
    total = sum_of(result)
    n, k = abq.shape(result)[-1], abq.shape(reads)[-1]
    stream = None if total == result else flow.id_of(total)
    static = static_of(unit, node, "matmul")
    recipe = unit.recipe.resolve(node, "matmul")
    return Product(
        *(at, node, id_, name, (n, k), encoding, stream, None, static),
        takes_bias=biased and recipe.gptq,
        shifts=takes_shift(op, encoding, unit),
        feeds_back=recipe.gptq,
        learns=recipe.learn,
        activation=matmul_activation(op, encoding, unit),
        per_channel=recipe.per_channel,
    )
