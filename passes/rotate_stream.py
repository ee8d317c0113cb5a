"""The residual stream is rotated in the weights, where the recipe asks `rotate` for its readers.

    x  = what embeddings, products and constants add up to      becomes R x, in their weights
    y  = norm(x) * g + b, read by products W                    norm(R x), read by (W g) R^T,
                                                                with W b in the bias

RMS norms commute with a rotation R, once their gains are in the products behind them. Layer norms
become RMS norms: the mean is taken out of what writes the stream. So the products behind norms read
rotated values, whose outliers are spread, and nothing is left to do at run time (QuaRot, Ashkboos
et al., 2024; SliceGPT for layer norms). The stream is found by walking the graph
(`channels/search.py`); where something in it keeps it from being rotated, a note names that, and
`quantize` rotates in front of each product at run time, as it does for what no stream brings (down
and output projections).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .channels.maps import CHUNK, CentredRotation, Rotation, along
from .channels.rotated_rows import rotated_rows, with_gains
from .channels.search import Blocker, Channels, Constant, NormOf, channels_behind, channels_of
from .infrastructure import Unit, node_name, register, users, walk
from .loops.constant_values import derived, is_constant, read, symbol_of
from .loops.generics import dims, expression, is_elementwise, maps, rank
from .patterns.norm_chain import Norm, match_norm, peel
from .quantization.imported_codes import kept_codes

# The attribute of an `abq.matmul` whose activations are rotated already: the block's size.
ROTATED = "rotated"
# The attribute of an `abq.matmul` whose weight was a table's: the symbol of the table now.
TIED = "tied"
# What recipes speak of, by the operation that has the weight.
KINDS = {"abq.matmul": "matmul", "abq.gather": "gather", "abq.conv": "conv"}


@dataclass(frozen=True)
class _Reader:
    """A norm of the stream, and the products that read what it makes. Where anything else does too,
    `restored` says why: what it makes is rotated back."""

    norm: NormOf
    products: Sequence[ir.Operation]
    restored: Blocker | None


@dataclass(frozen=True)
class _Stream:
    """`edges` are where it begins or ends at run time: rows are rotated there, and back."""

    channels: Channels
    readers: Sequence[_Reader]
    blockers: Sequence[Blocker]
    edges: Sequence[Blocker] = ()

    @property
    def products(self) -> list[ir.Operation]:
        """All products that read it, through norms or as it is."""
        behind = [product for reader in self.readers for product in reader.products]
        return behind + self.channels.products

    @property
    def centred(self) -> bool:
        """Whether its mean is taken out: layer norms do so with what they read."""
        return any(reader.norm.norm.kind == "layer" for reader in self.readers)

    @property
    def rotation(self) -> Rotation:
        return (CentredRotation if self.centred else Rotation)(self.channels.width)


@register
def rotate_stream(module: ir.Operation, unit: Unit) -> None:
    """Rotate residual streams in the weights around them, where the recipe asks for it."""
    if unit.recipe is None or not any("rotate" in rule.flags for rule in unit.recipe.rules):
        return
    norms = _norms(module)
    streams: list[_Stream] = []
    for norm in [norm for of_value in norms.values() for norm in of_value]:
        if not any(norm.norm.x in stream.channels.values for stream in streams):
            streams.append(_stream(norm, norms, unit))
    asked = [stream for stream in streams if _asks(stream, unit)]
    rotated = [stream for stream in asked if not stream.blockers]
    _Rewriting(unit).run(rotated, module)
    _note(asked, unit)


# Finding


def _norms(module: ir.Operation) -> dict[ir.Value, list[NormOf]]:
    """All norms, by what they read."""
    found: dict[ir.Value, list[NormOf]] = {}
    for op in walk(module):
        norm, end = None, op
        if op.name == "abq.norm":
            view = op.opview
            epsilon = ir.FloatAttr(op.attributes["epsilon"]).value
            kind = ir.StringAttr(view.kind).value
            norm = Norm(kind, view.x, epsilon, view.weight, view.bias)
        elif is_elementwise(op) and abq.shape(op.results[0]):
            norm = match_norm(op)
            if norm is not None:
                norm, end = _with_gains(op, norm)
                # Gains that are computed may be computed from what is normalized.
                gains = (norm.weight, norm.bias)
                norm = norm if all(g is None or is_constant(g) for g in gains) else None
        if norm is not None:
            found.setdefault(norm.x, []).append(NormOf(norm, end))
    return found


def _with_gains(op: ir.Operation, norm: Norm) -> tuple[Norm, ir.Operation]:
    """The norm with a weight and a bias that loops of their own apply, and the last loop."""
    weight_, bias, end = norm.weight, norm.bias, op
    if weight_ is None and bias is None:
        weight_, end = _vector_behind(end, "arith.mulf")
    if bias is None:
        bias, end = _vector_behind(end, "arith.addf")
    return Norm(norm.kind, norm.x, norm.epsilon, weight_, bias), end


def _vector_behind(op: ir.Operation, name: str) -> tuple[ir.Value | None, ir.Operation]:
    """The constant vector that the only reader of `op` multiplies (adds) its result by, and that
    reader; None and `op` where there is none."""
    readers = [user.operation for user in users(op.results[0]) if user.name != "tensor.dim"]
    if len(readers) != 1 or not is_elementwise(readers[0]):
        return None, op
    (reader,) = readers
    rest, vector = peel(reader, expression(reader), name)
    if vector is None or rest[0] != "in" or not is_constant(vector):
        return None, op
    if reader.results[0].type != op.results[0].type or reader.operands[rest[1]] != op.results[0]:
        return None, op
    return (vector, reader) if dims(maps(reader)[rest[1]]) == [*range(rank(reader))] else (None, op)


def _stream(norm: NormOf, norms: dict[ir.Value, list[NormOf]], unit: Unit) -> _Stream:
    """The stream that a norm reads, and all that keeps it from being rotated."""
    channels = channels_of(norm.norm.x, norms)
    readers = [_reader(reader, norms, unit) for reader in channels.norms]
    stream = _Stream(channels, readers, [])
    edges = [blocker for blocker in channels.blockers if blocker.value is not None]
    blockers = [blocker for blocker in channels.blockers if blocker.value is None]
    if stream.rotation.block == 1:
        blockers.append(Blocker(norm.op, f"no Hadamard matrix divides rows of {channels.width}"))
    restored = [reader.restored for reader in readers if reader.restored is not None]
    # A product with the matrix at run time costs more than a transform in front of products.
    if len(edges) + len(restored) >= len(readers) - len(restored):
        blockers += edges + restored
    blockers += _of_mean(stream, edges) + _of_codes(stream, unit)
    return _Stream(channels, readers, blockers, edges)


def _reader(norm: NormOf, norms: dict[ir.Value, list[NormOf]], unit: Unit) -> _Reader:
    behind = channels_behind(norm.op, norms)
    found = list(behind.blockers)
    found += [Blocker(again.op, "it normalizes what is normal") for again in behind.norms]
    gains = (norm.norm.weight, norm.norm.bias)
    if not all(gain is None or is_constant(gain) for gain in gains):
        found.append(Blocker(norm.op, "its gains are no constants"))
    elif not behind.views and _vector(norm.norm.bias, 0.0, unit) is not None:
        found.append(Blocker(norm.op, "what is computed behind it changes its bias"))
    return _Reader(norm, [] if found else behind.products, found[0] if found else None)


def _of_mean(stream: _Stream, edges: Sequence[Blocker]) -> list[Blocker]:
    """What reads the mean that layer norms would take out of the stream."""
    if not stream.centred:
        return []
    why = "it reads the mean of rows, which a rotation would take out for the layer norms"
    others = [reader.norm.op for reader in stream.readers if reader.norm.norm.kind != "layer"]
    others += [edge.op for edge in edges if edge.place >= 0 and edge.op is not None]
    return [Blocker(op, why) for op in [*others, *stream.channels.products]]


def _of_codes(stream: _Stream, unit: Unit) -> list[Blocker]:
    """The operations whose weights are codes of the model that the recipe keeps."""
    blockers = []
    weights = [(c.op, c.number) for c in stream.channels.constants]
    for op, number in [*weights, *((product, 1) for product in stream.products)]:
        symbol, kind = symbol_of(op.operands[number]), KINDS.get(op.name)
        if symbol is None or kind is None:
            continue
        scheme = unit.recipe.resolve(_node(op), kind).weight
        rotated = scheme is not None
        if kept_codes(symbol, scheme, unit.store, rotated=rotated) is not None:
            blockers.append(Blocker(op, "its weight is codes that the recipe keeps"))
    return blockers


def _asks(stream: _Stream, unit: Unit) -> bool:
    """Whether the recipe rotates what any product reads from the stream."""
    return any(unit.recipe.resolve(_node(op), "matmul").rotate for op in stream.products)


def _node(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["node"]).value


def _vector(value: ir.Value | None, neutral: float, unit: Unit) -> np.ndarray | None:
    """The gains that a constant holds, in f64; None where all are `neutral`."""
    if value is None:
        return None
    vector = read(value, unit.store).astype(np.float64)
    return None if (vector == neutral).all() else vector


# Rewriting


class _Rewriting:
    """Puts rotations into weights. Products that get a bias are made anew at the end, since streams
    refer to them."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.biases: list[tuple[ir.Operation, ir.Value]] = []
        self.turned: dict[ir.Value, ir.Value] = {}  # by what they were before

    def run(self, streams: Sequence[_Stream], module: ir.Operation) -> None:
        tables = [(op, symbol_of(op.operands[0])) for op in walk(module, "abq.gather")]
        products = [(op, symbol_of(op.operands[1])) for op in walk(module, "abq.matmul")]
        # Edges come before norms, whose results they may rotate, are replaced. Whoever writes comes
        # before who reads: a product may read one stream and write another, and what its bias
        # takes from a norm is then rotated with its weight.
        for stream in streams:
            self._turn_edges(stream)
        for stream in streams:
            for constant in stream.channels.constants:
                self._turn(constant, stream.rotation)
        for stream in streams:
            self._turn_readers(stream)
        for table, symbol in tables:
            heads = [op for op, of_product in products if symbol and of_product == symbol]
            self._untie(table, heads)
        self._add_biases()

    def _turn_readers(self, stream: _Stream) -> None:
        rotation = stream.rotation
        for product in stream.channels.products:
            self._turn_product(product, rotation, None)
        for reader in stream.readers:
            if reader.restored is not None:
                self._replace_norm(reader.norm, rotation)
                continue
            gain = _vector(reader.norm.norm.weight, 1.0, self.unit)
            bias = _vector(reader.norm.norm.bias, 0.0, self.unit)
            self._replace_norm(reader.norm, None)
            for product in reader.products:
                if bias is not None:
                    self._take_bias(product, bias)
                self._turn_product(product, rotation, gain)

    def _turn_edges(self, stream: _Stream) -> None:
        """Rotate rows where the stream begins at run time, and back where it ends."""
        ends = [(e.op, e.place, e.value) for e in stream.edges if e.place >= 0]
        begins = {e.value for e in stream.edges if e.place < 0}
        restored: dict[ir.Value, ir.Value] = {}
        for op, place, value in ends:
            assert op is not None and value is not None
            if value not in begins:  # else what it was before is at hand
                if value not in restored:
                    restored[value] = self._edge(value, stream, back=True)
                op.operands[place] = restored[value]
        for value in begins:
            assert value is not None
            uses = [(use.owner.operation, use.operand_number) for use in value.uses]
            self.turned[value] = self._edge(value, stream, back=False)
            for op, place in uses:
                kept = any(place == at and op == end for end, at, _ in ends)
                if not kept and op.name != "tensor.dim":
                    op.operands[place] = self.turned[value]

    def _edge(self, value: ir.Value, stream: _Stream, *, back: bool) -> ir.Value:
        owner, axis = value.owner, stream.channels.values[value]
        if isinstance(owner, ir.Block):
            point = ir.InsertionPoint.at_block_begin(owner)
        else:
            point = ir.InsertionPoint.after(owner)
        location = ir.Location.unknown() if isinstance(owner, ir.Block) else owner.location
        with point, location:
            return rotated_rows(value, axis, stream.rotation, self.unit.store, back=back)

    def _replace_norm(self, norm: NormOf, back: Rotation | None) -> None:
        """Put an RMS norm without gains in the place of a norm; with `back`, its rows are rotated
        back and have their gains."""
        op, type_ = norm.op, norm.op.results[0].type
        named = op.name == "abq.norm"
        x = op.opview.x if named else self.turned.get(norm.norm.x, norm.norm.x)
        with ir.InsertionPoint(op), op.location:
            new = abq.NormOp(
                x,
                ir.StringAttr.get("rms"),
                ir.FloatAttr.get(ir.F32Type.get(), norm.norm.epsilon),
                type_,
                type_,
                residual=op.opview.residual if named else None,
            )
            rows = new.result
            if back is not None:
                axis = len(abq.shape(rows)) - 1
                rows = rotated_rows(rows, axis, back, self.unit.store, back=True)
                rows = with_gains(rows, norm.norm.weight, norm.norm.bias)
        op.results[0].replace_all_uses_with(rows)
        if named:
            op.results[1].replace_all_uses_with(new.sum)
            op.erase()

    def _turn_product(
        self, product: ir.Operation, rotation: Rotation, gain: np.ndarray | None
    ) -> None:
        self._turn(Constant(product, 1, 1), rotation, gain)
        i64 = ir.IntegerType.get_signless(64)
        product.attributes[ROTATED] = ir.IntegerAttr.get(i64, rotation.block)

    def _turn(self, constant: Constant, rotation: Rotation, gain: np.ndarray | None = None) -> None:
        """Rotate the vectors along an axis of a constant, multiplied by the gains of a norm."""
        axis, width = constant.axis, rotation.width
        factor = np.float64(1.0) if gain is None else gain
        tag = f"{rotation.tag} axis {axis}" + ("" if gain is None else f" gains {_digest(gain)}")

        def compute(array: np.ndarray) -> np.ndarray:
            return along(array, axis, width, lambda v: rotation.consume(v * factor))

        op, number = constant.op, constant.number
        with ir.InsertionPoint(op), op.location:
            op.operands[number] = derived(op.operands[number], tag, compute, self.unit.store)

    def _take_bias(self, product: ir.Operation, bias: np.ndarray) -> None:
        """What a norm adds to rows is added to the product of it: `W b`."""
        w, store = product.opview.w, self.unit.store
        n, k = abq.shape(w)
        with ir.InsertionPoint(product), product.location:
            whole = np.tile(bias, k // len(bias))
            added = derived(
                w, f"times {_digest(bias)}", lambda a: _times(a, whole), store, shape=[n]
            )
            if product.opview.bias is None:
                self.biases.append((product, added))
                return
            symbol = symbol_of(added)
            product.operands[2] = derived(
                product.opview.bias, f"plus {symbol}", lambda a: _plus(a, store.get(symbol)), store
            )

    def _add_biases(self) -> None:
        for op, bias in self.biases:
            view = op.opview
            with ir.InsertionPoint(op), op.location:
                new = abq.MatmulOp(
                    view.x, view.w, op.attributes["node"], view.result.type, bias=bias
                ).operation
            for name in (ROTATED, TIED):
                if name in op.attributes:
                    new.attributes[name] = op.attributes[name]
            op.results[0].replace_all_uses_with(new.results[0])
            op.erase()

    def _untie(self, table: ir.Operation, heads: Sequence[ir.Operation]) -> None:
        """Heads whose weight is no longer that of the table keep its format."""
        symbol = symbol_of(table.operands[0])
        for head in heads:
            if symbol_of(head.operands[1]) == symbol or TIED in head.attributes:
                continue
            head.attributes[TIED] = ir.StringAttr.get(symbol)
            rows, columns = abq.shape(table.operands[0])
            self.unit.notes.append(
                {
                    "node": _node(head),
                    "note": f"shared its {rows} x {columns} weights with the table of "
                    f"'{_node(table)}'; rotated, with the gains of its norm, they are stored twice",
                }
            )


def _times(w: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """`w @ vector` in f64, rounded once; some rows of `w` at a time."""
    step = max(1, CHUNK // w.shape[1])
    parts = [w[i : i + step].astype(np.float64) @ vector for i in range(0, len(w), step)]
    return np.concatenate(parts).astype(np.float32)


def _plus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) + b).astype(np.float32)


def _digest(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.tobytes()).hexdigest()[:16]


def _note(asked: Sequence[_Stream], unit: Unit) -> None:
    """Say what keeps streams from being rotated: the first operation, and how much it concerns."""
    blocked = [stream for stream in asked if stream.blockers]
    if not blocked:
        return
    blocker = blocked[0].blockers[0]
    op = blocker.op if blocker.op is not None else blocked[0].readers[0].norm.op
    count = sum(len(stream.products) for stream in blocked)
    node = node_name(op) or op.name
    note = (
        "keeps the residual stream from being rotated in the weights, so that "
        f"{count} products rotate what they read in every run: {blocker.why}"
    )
    if any("rotate" in rule.flags - rule.implied for rule in unit.recipe.rules):
        unit.refuse(node, note)
    else:  # nobody has asked for it by name
        unit.notes.append({"node": node, "note": note})
