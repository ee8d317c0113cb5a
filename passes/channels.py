"""Channels: an axis that producers write and products read, found by walking the graph.

A linear map of the channels (a rotation, a permutation, a scaling) can be multiplied into the
constants that write them and, inverted, into the products that read them, if everything between
computes with channels linearly and all of them alike: sums of such tensors, what is computed for
each row times them, views, concatenations along other axes. `Channels` is all that hangs together
in this way: the residual stream of a decoder, say.

The channel of an element is its index on one axis modulo `width`: an axis of several heads has the
channels of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .constant_values import is_constant
from .generics import Tree, expression, filled, groups, inputs, is_elementwise, iterators, maps
from .infrastructure import defining_op
from .norm_chain import Norm, only_feeds


@dataclass(frozen=True)
class Constant:
    """Operand `number` of `op`, a constant whose `axis` runs over channels."""

    op: ir.Operation
    number: int
    axis: int


@dataclass(frozen=True)
class NormOf:
    """A normalization and the operation that ends it, whose first result is normalized rows."""

    norm: Norm
    op: ir.Operation


@dataclass(frozen=True)
class Blocker:
    """An operation that keeps the channels as they are; None: the model's signature does.

    `value` is what the operation writes (`place` -1) or reads as its operand `place`, where that
    alone is why: if that were changed on the way, nothing would be left of the blocker.
    """

    op: ir.Operation | None
    why: str
    value: ir.Value | None = None
    place: int = -1


@dataclass
class Channels:
    """What hangs together: `values` with the axis of their channels, the `constants` that write
    them, the products and the norms that read them, and what keeps them from being changed.

    `weights` of products and `tables` are among the constants. `views` is true where nothing
    computes with the values: each of their rows is one of those at the beginning.
    """

    width: int
    values: dict[ir.Value, int] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    products: list[ir.Operation] = field(default_factory=list)
    norms: list[NormOf] = field(default_factory=list)
    blockers: list[Blocker] = field(default_factory=list)
    views: bool = True


def channels_of(value: ir.Value, norms: Mapping[ir.Value, Sequence[NormOf]]) -> Channels:
    """All that hangs together with the last axis of `value`; `norms` lists norms by what they
    read."""
    search = _Search(Channels(abq.shape(value)[-1]), norms, whole=True)
    search.run(value, len(abq.shape(value)) - 1)
    return search.found


def channels_behind(op: ir.Operation, norms: Mapping[ir.Value, Sequence[NormOf]]) -> Channels:
    """All that hangs together with the last axis of the first result of `op`, whatever `op` is.

    Where something else writes these channels too, that is a blocker.
    """
    value = op.results[0]
    search = _Search(Channels(abq.shape(value)[-1]), norms, whole=False, origin=op)
    search.run(value, len(abq.shape(value)) - 1)
    return search.found


class _Unlike(Exception):
    """An operation does not treat all channels alike; the text is the end of "... it <text>"."""


class _Search:
    """Walks from a value to all that its channels reach, both ways.

    A function for each kind of operation gives, for the axis of one operand or result, those of
    the others; places are numbers of operands, and of results from -1 down.
    """

    def __init__(
        self,
        found: Channels,
        norms: Mapping[ir.Value, Sequence[NormOf]],
        *,
        whole: bool,
        origin: ir.Operation | None = None,
    ) -> None:
        self.found = found
        self.norms = norms
        self.ends = {norm.op: norm for of_value in norms.values() for norm in of_value}
        self.whole = whole
        self.origin = origin
        self.waiting: list[tuple[ir.Value, int]] = []
        self.seen: set[tuple[ir.Operation, int]] = set()

    def run(self, value: ir.Value, axis: int) -> None:
        self._reach(value, axis, None)
        while self.waiting:
            value, axis = self.waiting.pop()
            made = defining_op(value)
            if made is None:
                self._block(None, "it is an input of the model or of a loop", value)
            elif self.origin is None or made != self.origin:
                place = next(i for i, result in enumerate(made.results) if result == value)
                self._pass(made, -1 - place, axis)
            loops = [norm for norm in self.norms.get(value, ()) if norm.op.name != "abq.norm"]
            for norm in loops:
                self._read_by_norm(norm, value, axis)
            ends = {norm.op for norm in loops}
            for use in value.uses:
                op = use.owner.operation
                if not ends or not only_feeds(op, ends):
                    self._pass(op, use.operand_number, axis)

    def _read_by_norm(self, norm: NormOf, value: ir.Value, axis: int) -> None:
        if axis != len(abq.shape(value)) - 1 or abq.shape(value)[-1] != self.found.width:
            self._block(norm.op, "it normalizes another axis")
        elif norm not in self.found.norms:
            self.found.norms.append(norm)

    def _reach(self, value: ir.Value, axis: int, op: ir.Operation | None) -> None:
        if value in self.found.values:
            if self.found.values[value] != axis:
                self._block(op, "it reads one tensor along two axes")
            return
        size = abq.shape(value)[axis]
        if size <= 0 or size % self.found.width:
            self._block(op, "it cuts the channels up")
        elif not isinstance(abq.element(value), ir.F32Type):
            self._block(op, f"its elements are {abq.element(value)}")
        else:
            self.found.values[value] = axis
            self.waiting.append((value, axis))

    def _block(
        self, op: ir.Operation | None, why: str, value: ir.Value | None = None, place: int = -1
    ) -> None:
        axis = self.found.values.get(value) if value is not None else None
        if axis is None or abq.shape(value)[axis] != self.found.width:
            value = None  # it was not reached, or holds several times the channels
        self.found.blockers.append(Blocker(op, why, value, place))

    def _pass(self, op: ir.Operation, place: int, axis: int) -> None:
        """Go on from one operand or result of `op` to all others that have channels."""
        if (op, place) in self.seen:
            return
        self.seen.add((op, place))
        if op.name == "tensor.dim":
            return
        try:
            if op.name in _TERMINALS:
                self._end(op, place, axis)
                return
            if place == -1 and op in self.ends:
                raise _Unlike("normalizes what it writes (a norm behind the branch)")
            if place >= 0 and op in self.ends and op.name == "abq.norm":
                self._read_by_norm(self.ends[op], op.operands[place], axis)
            axes = _LINEAR[op.name](op, place, axis) if op.name in _LINEAR else None
            if axes is None:
                raise _Unlike("is no product and does not compute with rows as a whole")
        except _Unlike as error:
            value = op.operands[place] if place >= 0 else op.results[-1 - place]
            self._block(op, f"it {error}", value, max(place, -1))
            return
        if op.name not in _VIEWS and not (op.name == "linalg.generic" and _is_copy(op)):
            self.found.views = False
        for other, its in axes.items():
            self.seen.add((op, other))
            self._go(op, other, its)

    def _go(self, op: ir.Operation, place: int, axis: int) -> None:
        if place < 0:
            self._reach(op.results[-1 - place], axis, op)
            return
        value = op.operands[place]
        if filled(value) == 0.0:
            return
        if is_constant(value) and not isinstance(abq.element(value), ir.F32Type):
            self._block(op, f"it reads a constant of {abq.element(value)}")
            return
        if is_constant(value):
            self._writes(op)
            self.found.constants.append(Constant(op, place, axis))
            return
        self._reach(value, axis, op)

    def _writes(self, op: ir.Operation) -> None:
        if not self.whole:
            self._block(op, "it adds to what a norm has made (a norm behind the branch)")

    def _end(self, op: ir.Operation, place: int, axis: int) -> None:
        """A product that writes the channels or reads them, or a table."""
        operands = _operands(op)
        if place >= 0:
            if op.name != "abq.matmul" or place != operands["x"]:
                raise _Unlike("is no product with a constant weight")
            if axis != len(abq.shape(op.operands[place])) - 1:
                raise _Unlike("multiplies another axis")
            _require_floats(op, operands)
            self.found.products.append(op)
            return
        self._writes(op)
        if place != -1 or axis != (
            1 if op.name == "abq.conv" else len(abq.shape(op.results[0])) - 1
        ):
            raise _Unlike("writes the channels along another axis")
        if op.name == "abq.conv" and ir.IntegerAttr(op.attributes["groups"]).value > 1:
            raise _Unlike("is a convolution in groups")
        _require_floats(op, operands)
        name = "table" if op.name == "abq.gather" else "w"
        self.found.constants.append(
            Constant(op, operands[name], 1 if op.name == "abq.gather" else 0)
        )
        if "bias" in operands:
            self.found.constants.append(Constant(op, operands["bias"], 0))


_TERMINALS = {
    "abq.matmul": ("x", "w", "bias", "x_scale", "x_zero", "w_scale", "w_zero"),
    "abq.conv": ("x", "w", "bias", "x_scale", "x_zero", "w_scale", "w_zero"),
    "abq.gather": ("table", "indices", "scale", "zero"),
}
# What shows rows as they are.
_VIEWS = frozenset(
    {
        "tensor.collapse_shape",
        "tensor.expand_shape",
        "tensor.cast",
        "tensor.extract_slice",
        "linalg.transpose",
    }
)


def _operands(op: ir.Operation) -> dict[str, int]:
    """The numbers of the operands that a product or a table has, by name."""
    sizes = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
    present = [name for name, size in zip(_TERMINALS[op.name], sizes, strict=True) if size]
    return {name: number for number, name in enumerate(present)}


def _require_floats(op: ir.Operation, operands: Mapping[str, int]) -> None:
    """Weights, tables and biases are constants without codes in the types."""
    for name in ("w", "table", "bias"):
        if name in operands and not is_constant(op.operands[operands[name]]):
            raise _Unlike(f"has a {name} that is no constant")
    if any(name.endswith(("scale", "zero")) for name in operands):
        raise _Unlike("computes with codes of the model")


# Operations that are linear: the axes of all operands and results that have channels.

Axes = dict[int, int]


def _expand(op: ir.Operation, place: int, axis: int) -> Axes:
    return _reshape(op, 0, -1, place, axis)


def _collapse(op: ir.Operation, place: int, axis: int) -> Axes:
    return _reshape(op, -1, 0, place, axis)


def _reshape(op: ir.Operation, narrow: int, wide: int, place: int, axis: int) -> Axes:
    """Axes of `wide` are grouped into those of `narrow`; channels run innermost."""
    sizes = abq.shape(op.results[0] if wide < 0 else op.operands[0])
    if place == narrow:
        group = groups(op)[axis]
        inner = [i for i in group if sizes[i] != 1] or [group[-1]]
        return {narrow: axis, wide: inner[-1]}
    number, group = next((n, g) for n, g in enumerate(groups(op)) if axis in g)
    if any(sizes[i] != 1 for i in group if i > axis):
        raise _Unlike("makes one axis of the channels and what is inside of them")
    return {narrow: number, wide: axis}


def _cast(op: ir.Operation, place: int, axis: int) -> Axes:
    return {0: axis, -1: axis}


def _transpose(op: ir.Operation, place: int, axis: int) -> Axes:
    order = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
    source = order[axis] if place < 0 else axis
    return {0: source, -1: order.index(source)}


def _slice(op: ir.Operation, place: int, axis: int) -> Axes:
    source, result = abq.shape(op.operands[0]), abq.shape(op.results[0])
    if place > 0:
        raise _Unlike("takes its offsets from the channels")
    dropped = len(source) - len(result)
    axes = {0: axis, -1: axis}
    if dropped and axis != (len(source) if place == 0 else len(result)) - 1:
        raise _Unlike("drops axes")
    if dropped:
        axes = {0: len(source) - 1, -1: len(result) - 1}
    offset = list(ir.DenseI64ArrayAttr(op.attributes["static_offsets"]))[axes[0]]
    stride = list(ir.DenseI64ArrayAttr(op.attributes["static_strides"]))[axes[0]]
    if offset != 0 or stride != 1 or source[axes[0]] != result[axes[-1]]:
        raise _Unlike("takes some of the channels")
    return axes


def _concat(op: ir.Operation, place: int, axis: int) -> Axes:
    if ir.IntegerAttr(op.attributes["dim"]).value == axis:
        raise _Unlike("puts channels side by side")
    return {-1: axis, **dict.fromkeys(range(len(op.operands)), axis)}


def _norm(op: ir.Operation, place: int, axis: int) -> Axes:
    """The sum that a norm is of; what it normalizes is the business of `Channels.norms`."""
    sizes = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
    if place > sizes[1]:
        raise _Unlike("reads them as gains")
    return dict.fromkeys(range(1 + sizes[1]), axis) | {-2: axis}


def _generic(op: ir.Operation, place: int, axis: int) -> Axes:
    """A loop that is linear in its operands with channels, and the same for all channels."""
    if len(op.results) != 1:
        raise _Unlike("has several results")
    if place >= len(inputs(op)):
        place = -1
    all_maps = maps(op)
    of_axis = all_maps[place].results[axis]
    if not isinstance(of_axis, ir.AffineDimExpr):
        raise _Unlike("reads the channels out of order")
    loop = ir.AffineDimExpr(of_axis).position
    if iterators(op)[loop] != "parallel":
        raise _Unlike("sums over the channels")
    axes: Axes = {}
    for number, map_ in enumerate(all_maps):
        read = [i for i, result in enumerate(map_.results) if _mentions(result, loop)]
        plain = [i for i in read if isinstance(map_.results[i], ir.AffineDimExpr)]
        if len(read) > 1 or read != plain:
            raise _Unlike("reads the channels out of order")
        if read:
            axes[number if number < len(inputs(op)) else -1] = read[0]
    if -1 not in axes:
        raise _Unlike("sums over the channels")
    tree = expression(op)
    if _degree(tree, axes, loop) != _LINEAR_DEGREE:
        raise _Unlike("does not compute with rows as a whole")
    if _reads_out(tree):
        axes[len(inputs(op))] = axes[-1]
    return axes


def _mentions(expression_: ir.AffineExpr, loop: int) -> bool:
    return f"d{loop}" in str(expression_).replace("(", " ").replace(")", " ").split()


_ZERO, _SCALAR_DEGREE, _LINEAR_DEGREE = "zero", "scalar", "linear"


def _degree(tree: Tree, axes: Axes, loop: int) -> str | None:
    """Whether a body is linear in the operands of `axes`, free of them, zero, or none of these."""
    name = tree[0]
    if name == "const":
        return _ZERO if tree[1] == 0.0 else _SCALAR_DEGREE
    if name == "in":
        return _LINEAR_DEGREE if tree[1] in axes else _SCALAR_DEGREE
    if name == "out":
        return _LINEAR_DEGREE
    if name == "outside":
        return _SCALAR_DEGREE
    if name == "large" or (name == "linalg.index" and f"dim={loop} : i64" in tree):
        return None
    parts = [_degree(part, axes, loop) for part in tree[1:] if isinstance(part, tuple)]
    if None in parts:
        return None
    linear = [part == _LINEAR_DEGREE for part in parts]
    if not any(linear):
        return _SCALAR_DEGREE
    if name in ("arith.addf", "arith.subf"):
        return None if _SCALAR_DEGREE in parts else _LINEAR_DEGREE
    if name == "arith.select":
        return None if linear[0] or _SCALAR_DEGREE in parts[1:] else _LINEAR_DEGREE
    once = {"arith.mulf": sum(linear) == 1, "arith.divf": linear == [True, False]}
    return _LINEAR_DEGREE if once.get(name, name in ("arith.negf", "arith.extf")) else None


def _reads_out(tree: Tree) -> bool:
    return tree[0] == "out" or any(_reads_out(part) for part in tree[1:] if isinstance(part, tuple))


def _is_copy(op: ir.Operation) -> bool:
    return is_elementwise(op) and expression(op) == ("in", 0)


_LINEAR = {
    "tensor.expand_shape": _expand,
    "tensor.collapse_shape": _collapse,
    "tensor.cast": _cast,
    "tensor.extract_slice": _slice,
    "tensor.concat": _concat,
    "linalg.transpose": _transpose,
    "linalg.generic": _generic,
    "abq.norm": _norm,
}
