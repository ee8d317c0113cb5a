"""Two ways to make values, of which a run takes one: scf.if, and what its results are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects.mlir import ir, scf, tensor

from ..registry import Node
from ..values import symbolic
from ..values.symbolic import Dim
from ..values.value import AnyValue, Value
from .emit import DYNAMIC, Builder
from .regions import detached, if_else, made_after, owned
from .structure import flattened, rebuilt

Branch = Callable[[], Sequence[AnyValue]]


def either(
    node: Node,
    condition: Dim,
    then: Branch,
    otherwise: Branch,
    look: Callable[[Sequence[AnyValue], Sequence[AnyValue]], None] = lambda a, b: None,
) -> list[AnyValue]:
    """What `then` makes if `condition` is not 0, else what `otherwise` makes.

    They may differ in sizes, not in ranks and types. `look` sees what both have made before it is
    brought together. Raises ModelError.
    """
    mark = node.b.mark
    results: list[Sequence[AnyValue]] = []
    blocks = [_block(node.b, branch, results) for branch in (then, otherwise)]
    look(*results)
    return _Join(node, condition, mark, results[0], results[1]).emit(blocks)


def _block(b: Builder, branch: Branch, results: list[Sequence[AnyValue]]) -> ir.Block:
    return detached(b, lambda: results.append(branch()))


class _Join:
    """The results of two branches, brought together."""

    def __init__(
        self,
        node: Node,
        condition: Dim,
        mark: int,
        then: Sequence[AnyValue],
        otherwise: Sequence[AnyValue],
    ) -> None:
        self.node = node
        self.b: Builder = node.b
        self.condition = condition
        self.mark = mark
        if len(then) != len(otherwise):
            raise node.error("its branches have different numbers of outputs")
        self.shapes = list(then)
        self.pairs: list[tuple[Value, Value]] = []
        for at, (a, b) in enumerate(zip(then, otherwise, strict=True)):
            left, right = flattened(a), flattened(b)
            if len(left) != len(right) or type(a) is not type(b):
                raise node.error(
                    f"output {at} is a sequence or an optional whose length depends on the "
                    "condition, which only a run knows"
                )
            self.pairs += zip(left, right, strict=True)
        for a, b in self.pairs:
            self._check(a, b)

    def _check(self, a: Value, b: Value) -> None:
        if a.dtype != b.dtype:
            raise self.node.error(
                f"its branches return different types: {a.dtype.name} and {b.dtype.name}"
            )
        if a.rank != b.rank:
            raise self.node.error(
                f"its branches return sequences of tensors of different rank, {a} and {b}, and "
                "only a run knows which",
                hint="pin the shapes of the inputs that the condition depends on with --shape",
            )

    def emit(self, blocks: Sequence[ir.Block]) -> list[AnyValue]:
        # Of pairs that differ and are not known as numbers the tensors leave the branches.
        carried = [(a, b) for a, b in self.pairs if a is not b and self._content(a, b) is None]
        types = [self._type(a, b) for a, b in carried]
        for block, values in zip(blocks, zip(*carried, strict=True) or ([], []), strict=False):
            with self.b.block(block):
                scf.YieldOp([owned(self.b, v, t) for v, t in zip(values, types, strict=True)])
        if not carried:
            for block in blocks:
                with self.b.block(block):
                    scf.YieldOp([])
        tensors = iter(if_else(self.b, self.b.truth(self.condition), types, *blocks))
        leaves = []
        for a, b in self.pairs:
            if a is b:
                leaves.append(a)
                continue
            content = self._content(a, b)
            leaves.append(
                Value(a.dtype, a.dims, content=content)
                if content is not None
                else self._result(a, b, next(tensors))
            )
        rest = iter(leaves)
        return [rebuilt(shape, rest) for shape in self.shapes]

    def _content(self, a: Value, b: Value) -> tuple[Dim, ...] | None:
        """Numbers of both branches that are known outside of them."""
        left, right = a.symbols, b.symbols
        if left is None or right is None or a.dims != b.dims or len(left) > 16:
            return None
        if any(made_after(dim, self.mark) for dim in (*left, *right)):
            return None
        return tuple(
            symbolic.select(self.condition, x, y) for x, y in zip(left, right, strict=True)
        )

    def _dim(self, a: Dim, b: Dim) -> Dim | None:
        """The size of a result, None where it is made inside of a branch."""
        if made_after(a, self.mark) or made_after(b, self.mark):
            return None
        return symbolic.select(self.condition, a, b)

    def _type(self, a: Value, b: Value) -> ir.Type:
        sizes = [
            x.value if x.value is not None and x == y else DYNAMIC
            for x, y in zip(a.dims, b.dims, strict=True)
        ]
        return ir.RankedTensorType.get(sizes, a.dtype.inside())

    def _result(self, a: Value, b: Value, ssa: ir.Value) -> Value:
        dims = []
        for axis, (x, y) in enumerate(zip(a.dims, b.dims, strict=True)):
            dim = self._dim(x, y)
            if dim is None:
                dim = self.b.run_time(tensor.DimOp(ssa, self.b.index(axis)).result)
            dims.append(dim)
        return self.b.made(ssa, a.dtype, dims)
