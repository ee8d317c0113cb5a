"""Resolves sizes to those of the function's inputs, and drops the checks that this proves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

from abqc.dialects.mlir import PassManager, arith, cf, ir, tensor

from .reshapes import reshape_to_view
from .sizes import Place, Same, Sizes, axis_of

UPSTREAM = (
    "lower-affine,func.func(resolve-ranked-shaped-type-result-dims),"
    "int-range-optimizations,canonicalize,cse"
)
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def resolve_dims(module: ir.Module, symbols: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """`symbols` are the names of the inputs' sizes, by axis, "" for those without one.

    Inputs that share a name must agree on that size, and `past + seq` must be the sum of those
    sizes: the function checks this first.
    """
    block = module.body.operations[0].regions[0].blocks[0]
    inputs = unify_symbols(block, symbols, names)
    _upstream(module)
    while forward_dims(block):
        _upstream(module)
    simplify_sizes(block, Sizes(inputs.same))
    inputs.check(block)  # not before: what is taken for granted would be found to be true
    _upstream(module)
    drop_repeated_checks(block)


def _upstream(module: ir.Module) -> None:
    PassManager.parse(f"builtin.module({UPSTREAM})").run(module.operation)


def walk(block: ir.Block) -> Iterator[ir.Operation]:
    for op in block.operations:
        yield op.operation
        for region in op.regions:
            for inner in region.blocks:
                yield from walk(inner)


def unify_symbols(
    block: ir.Block, symbols: Sequence[Sequence[str]], names: Sequence[str]
) -> _InputSizes:
    """Makes one value of all sizes that must be equal; returns what remains to be checked."""
    dims = [op for op in walk(block) if op.name == "tensor.dim" and axis_of(op) is not None]
    with ir.InsertionPoint.at_block_begin(block), ir.Location.name("inputs"):
        sizes = _InputSizes()
        for with_sum in (False, True):  # a sum can name a size of a later input
            for argument, name, axes in zip(block.arguments, names, symbols, strict=True):
                for axis, symbol in enumerate(axes):
                    if ("+" in symbol) == with_sum:
                        sizes.add(argument, axis, symbol, name)
    for op in dims:
        known = sizes.values.get((op.operands[0], axis_of(op) or 0))
        if known is not None:
            op.results[0].replace_all_uses_with(known)
            op.erase()
    return sizes


class _InputSizes:
    """The named sizes of the inputs: their values, and what makes equal names equal sizes."""

    def __init__(self) -> None:
        self.values: dict[Place, ir.Value] = {}
        self.same: Same = {}
        self._first: dict[str, tuple[Place, str]] = {}
        self._messages: dict[Place, str] = {}

    def add(self, argument: ir.Value, axis: int, symbol: str, name: str) -> None:
        terms = [term.strip() for term in symbol.split("+")]
        if not all(_SYMBOL.fullmatch(term) for term in terms):
            return
        if len(terms) == 1 and symbol not in self._first:
            self._first[symbol] = ((argument, axis), name)
            self.values[argument, axis] = _dim(argument, axis)
            return
        if any(term not in self._first for term in terms):
            return
        places = [self._first[term][0] for term in terms]
        others = ", ".join(dict.fromkeys(f"'{self._first[term][1]}'" for term in terms))
        message = f"axis {axis} of input '{name}' must be '{symbol}' as in {others}"
        self.values[argument, axis] = reduce(arith.addi, [self.values[at] for at in places])
        self.same[argument, axis] = places
        self._messages[argument, axis] = message

    def check(self, block: ir.Block) -> None:
        """Has the function check at its beginning what was taken for granted."""
        with ir.InsertionPoint.at_block_begin(block), ir.Location.name("inputs"):
            for place, message in self._messages.items():
                total = reduce(arith.addi, [_dim(*at) for at in self.same[place]])
                equal = arith.cmpi(arith.CmpIPredicate.eq, _dim(*place), total)
                cf.assert_(equal, message)


def simplify_sizes(block: ir.Block, sizes: Sizes) -> None:
    """One value for equal sizes, true for comparisons of them, views for reshapes they explain."""
    values: dict[object, ir.Value] = {}
    comparisons: list[ir.Operation] = []
    for op in [op.operation for op in block.operations]:
        if op.name == "arith.cmpi":
            comparisons.append(op)
        elif op.name == "tensor.reshape":
            reshape_to_view(op, sizes)
        elif op.name.startswith(("arith.", "tensor.dim")) and _is_size(op):
            key = (frozenset(sizes.of(op.results[0]).items()), str(op.results[0].type))
            known = values.setdefault(key, op.results[0])
            if known != op.results[0]:
                op.results[0].replace_all_uses_with(known)
                op.erase()
    for op in comparisons:
        _decide(op, sizes)


def _is_size(op: ir.Operation) -> bool:
    return len(op.results) == 1 and str(op.results[0].type) in ("index", "i64")


def _decide(op: ir.Operation, sizes: Sizes) -> None:
    truth = sizes.truth(op.results[0])
    if truth is None:
        return
    with ir.InsertionPoint(op), op.location:
        known = arith.constant(ir.IntegerType.get_signless(1), int(truth))
    op.results[0].replace_all_uses_with(known)
    op.erase()


def drop_repeated_checks(block: ir.Block) -> None:
    """`cf.assert` has an effect, so that cse leaves equal ones."""
    seen: set[ir.Value] = set()
    for op in [op.operation for op in block.operations if op.operation.name == "cf.assert"]:
        if op.operands[0] in seen:
            op.erase()
        else:
            seen.add(op.operands[0])


def forward_dims(block: ir.Block) -> bool:
    """Whether any size of an abq op's result was read."""
    dims = [op for op in walk(block) if op.name == "tensor.dim"]
    return sum(_forward_dim(op) for op in dims) > 0


def _forward_dim(op: ir.Operation) -> bool:
    """A size of an abq op's result in terms of its operands: IRDL ops cannot say it themselves."""
    source, axis = op.operands[0].owner, axis_of(op)
    rule = None if isinstance(source, ir.Block) or axis is None else FORWARD.get(source.name)
    if rule is None or axis is None:
        return False
    with ir.InsertionPoint(op), op.location:
        size = rule(source, axis)
    if size is None:
        return False
    op.results[0].replace_all_uses_with(size)
    op.erase()
    return True


def _matmul_dim(op: ir.Operation, axis: int) -> ir.Value:
    return _dim(op.operands[0], axis)


def _gather_dim(op: ir.Operation, axis: int) -> ir.Value:
    return _dim(op.operands[1], axis)


def _conv_dim(op: ir.Operation, axis: int) -> ir.Value | None:
    """(size + pads - reach) / stride + 1 of a spatial axis."""
    x, window = op.operands[0], ir.RankedTensorType(op.operands[1].type).shape
    if axis == 0:
        return _dim(x, 0)
    if axis == 1:
        return None
    at, spatial = axis - 2, len(window) - 2
    pads, strides, dilations = (
        list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in ("pads", "strides", "dilations")
    )
    reach = dilations[at] * (window[axis] - 1) + 1
    room = arith.addi(_dim(x, axis), _index(pads[at] + pads[at + spatial] - reach))
    steps = room if strides[at] == 1 else arith.floordivsi(room, _index(strides[at]))
    return arith.addi(steps, _index(1))


FORWARD: dict[str, Callable[[ir.Operation, int], ir.Value | None]] = {
    "abq.matmul": _matmul_dim,
    "abq.gather": _gather_dim,
    "abq.conv": _conv_dim,
}


def _dim(value: ir.Value, axis: int) -> ir.Value:
    return tensor.DimOp(value, _index(axis)).result


def _index(value: int) -> ir.Value:
    return arith.constant(ir.IndexType.get(), value)
