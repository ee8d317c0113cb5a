"""Channels: an axis that producers write and products read, found by walking the graph.

A linear map of the channels (a rotation, a scaling) can be multiplied into the constants that write
them and, inverted, into the products that read them, if everything between computes with channels
linearly and all of them alike: sums of such tensors, what is computed for each row times them,
views, concatenations along other axes. `Channels` is all that hangs together in this way: the
residual stream of a decoder, say. For a permutation it is enough that all channels are treated
alike: activations and norms may stand between.

The channel of an element is its index on one axis modulo `width`: an axis of several heads has the
channels of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import defining_op, operand_segments
from ..loops.constant_values import is_constant
from ..loops.generics import filled
from ..patterns.norm_chain import Norm, only_feeds
from .rules import LINEAR, PERMUTABLE, VIEWS, Unlike, is_copy


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


def permutable_channels(value: ir.Value) -> Channels:
    """All that hangs together with the last axis of `value`, if channels are put in another
    order."""
    search = _Search(Channels(abq.shape(value)[-1]), {}, whole=True, permuting=True)
    search.run(value, len(abq.shape(value)) - 1)
    return search.found


class _Search:
    """Walks from a value to all that its channels reach, both ways.

    Places are numbers of operands, and of results from -1 down, as in `rules.py`.
    """

    def __init__(
        self,
        found: Channels,
        norms: Mapping[ir.Value, Sequence[NormOf]],
        *,
        whole: bool,
        origin: ir.Operation | None = None,
        permuting: bool = False,
    ) -> None:
        self.found = found
        self.norms = norms
        self.ends = {norm.op: norm for of_value in norms.values() for norm in of_value}
        self.whole = whole
        self.origin = origin
        self.permuting = permuting
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
                raise Unlike("normalizes what it writes (a norm behind the branch)")
            if place >= 0 and op in self.ends and op.name == "abq.norm":
                self._read_by_norm(self.ends[op], op.operands[place], axis)
            rules = PERMUTABLE if self.permuting else LINEAR
            axes = rules[op.name](op, place, axis) if op.name in rules else None
            if axes is None:
                raise Unlike("is no product and does not compute with rows as a whole")
        except Unlike as error:
            value = op.operands[place] if place >= 0 else op.results[-1 - place]
            self._block(op, f"it {error}", value, max(place, -1))
            return
        if op.name not in VIEWS and not (op.name == "linalg.generic" and is_copy(op)):
            self.found.views = False
        for other, its in axes.items():
            self.seen.add((op, other))
            self._go(op, other, its)

    def _go(self, op: ir.Operation, place: int, axis: int) -> None:
        if place < 0:
            self._reach(op.results[-1 - place], axis, op)
            return
        value = op.operands[place]
        if filled(value) == 0.0 or (self.permuting and filled(value) is not None):
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
                raise Unlike("is no product with a constant weight")
            if axis != len(abq.shape(op.operands[place])) - 1:
                raise Unlike("multiplies another axis")
            _require_floats(op, operands)
            self.found.products.append(op)
            return
        self._writes(op)
        if place != -1 or axis != (
            1 if op.name == "abq.conv" else len(abq.shape(op.results[0])) - 1
        ):
            raise Unlike("writes the channels along another axis")
        if op.name == "abq.conv" and ir.IntegerAttr(op.attributes["groups"]).value > 1:
            raise Unlike("is a convolution in groups")
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


def _operands(op: ir.Operation) -> dict[str, int]:
    """The numbers of the operands that a product or a table has, by name."""
    sizes = operand_segments(op)
    present = [name for name, size in zip(_TERMINALS[op.name], sizes, strict=True) if size]
    return {name: number for number, name in enumerate(present)}


def _require_floats(op: ir.Operation, operands: Mapping[str, int]) -> None:
    """Weights, tables and biases are constants without codes in the types."""
    for name in ("w", "table", "bias"):
        if name in operands and not is_constant(op.operands[operands[name]]):
            raise Unlike(f"has a {name} that is no constant")
    if any(name.endswith(("scale", "zero")) for name in operands):
        raise Unlike("computes with codes of the model")
