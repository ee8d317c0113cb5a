"""Channels of similar weights become neighbours, where the recipe asks `sort`.

Weights that share a scale lose the less the more alike they are, and a group is a run of columns.
So the columns of a product are put in the order of their size, in the weights, and what writes them
puts them there: nothing is left to do at run time (Soloveychik et al., "Accurate Block Quantization
in LLMs with Outliers", 2024). All that hangs together has one order: a residual stream with all
products that read it, behind norms or as it is; what is between the two products of an MLP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from abqc.dialects.mlir import ir

from .channels.maps import CHUNK, Permutation, along
from .channels.search import Channels, Constant, permutable_channels
from .infrastructure import Unit, register, walk
from .loops.constant_values import derived, symbol_of
from .rotate_stream import ROTATED


@register
def sort_channels(module: ir.Operation, unit: Unit) -> None:
    """Put channels of similar weights side by side, where the recipe asks for it."""
    if unit.recipe is None or not any("sort" in rule.flags for rule in unit.recipe.rules):
        return
    found: list[Channels] = []
    for product in walk(module, "abq.matmul"):
        x = product.operands[0]
        if _asks(product, unit) and not any(x in channels.values for channels in found):
            found.append(permutable_channels(x))
    for channels in found:
        if not channels.blockers and _is_float(channels, unit):
            _sort(channels, unit)


def _asks(product: ir.Operation, unit: Unit) -> bool:
    """Whether a product has groups of columns that the recipe sorts; what is rotated has columns
    that are alike."""
    node = ir.StringAttr(product.attributes["node"]).value
    recipe = unit.recipe.resolve(node, "matmul")
    weight = recipe.weight
    if not recipe.sort or recipe.rotate or ROTATED in product.attributes or weight is None:
        return False
    return weight.group_size is not None and symbol_of(product.operands[1]) is not None


def _is_float(channels: Channels, unit: Unit) -> bool:
    """Whether no weight is codes of the model, which would be encoded anew."""
    values = [(c.op, c.number) for c in channels.constants] + [(p, 1) for p in channels.products]
    symbols = [symbol_of(op.operands[number]) for op, number in values]
    return all(s is None or unit.store.quantized(s) is None for s in symbols)


def _sort(channels: Channels, unit: Unit) -> None:
    readers = [product for product in channels.products if _asks(product, unit)]
    order = np.argsort(_sizes(readers, channels.width, unit), kind="stable")
    digest = hashlib.sha256(order.astype(np.int64).tobytes()).hexdigest()[:16]
    permutation = Permutation(tuple(order.tolist()), f"sorted {digest}")
    for product in channels.products:
        _permute(Constant(product, 1, 1), permutation, unit)
    for constant in channels.constants:
        _permute(constant, permutation, unit)


def _sizes(products: Sequence[ir.Operation], width: int, unit: Unit) -> np.ndarray:
    """The sum of squares of each channel's weights, every product counting alike."""
    total = np.zeros(width)
    for product in products:
        weight = unit.store.get(symbol_of(product.operands[1]))
        step = max(1, CHUNK // weight.shape[1])
        squares = np.zeros(weight.shape[1])
        for begin in range(0, len(weight), step):
            squares += np.square(weight[begin : begin + step].astype(np.float64)).sum(axis=0)
        of_channel = squares.reshape(-1, width).sum(axis=0)
        total += of_channel / max(of_channel.sum(), np.finfo(np.float64).tiny)
    return total


def _permute(constant: Constant, permutation: Permutation, unit: Unit) -> None:
    op, number, axis = constant.op, constant.number, constant.axis
    with ir.InsertionPoint(op), op.location:
        op.operands[number] = derived(
            op.operands[number],
            f"{permutation.tag} axis {axis}",
            lambda a: along(a, axis, permutation.width, permutation.produce),
            unit.store,
        )
