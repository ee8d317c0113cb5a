"""The data flow of a model's host function: what is expensive, who needs it, where to cut.

An *expensive* operation is one of abq's, or one that depends on such: products, table rows,
attention. The rest (masks, angles of rotary embeddings, sizes) is computed again in every segment
that needs it, from the model's inputs, so that only expensive tensors are kept between segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from abqc.dialects import abq
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import main_function

UNKNOWN_SIZE = 256  # what a dynamic size counts when tensors are compared


@dataclass(frozen=True, order=True)
class ValueId:
    """A result of the operation at `at` among those of the function's block; the same in clones."""

    at: int
    result: int

    def of(self, operations: list[ir.Operation]) -> ir.Value:
        return operations[self.at].results[self.result]


class DataFlow:
    """The operations of `@main` in order, and what each needs. The module must not change."""

    def __init__(self, module: ir.Operation) -> None:
        self.operations = block_operations(module)
        self._position = {
            result: ValueId(at, number)
            for at, op in enumerate(self.operations)
            for number, result in enumerate(op.results)
        }
        self._expensive: list[bool] = []
        for op in self.operations:
            own = op.name.startswith("abq.") and op.name != "abq.weight"
            self._expensive.append(
                own or any(self._expensive[known.at] for known in self._sources(op))
            )

    def id_of(self, value: ir.Value) -> ValueId | None:
        """None for arguments, and for values inside regions."""
        return self._position.get(value)

    def is_expensive(self, id_: ValueId) -> bool:
        return self._expensive[id_.at]

    @cached_property
    def _needs(self) -> list[frozenset[ValueId]]:
        """By operation the expensive tensors it reads, or those behind scalars and codes."""
        found: list[frozenset[ValueId]] = []
        for op in self.operations:
            needed: set[ValueId] = set()
            for source in self._sources(op):
                if not self._expensive[source.at]:
                    continue
                if _can_be_kept(source.of(self.operations).type):
                    needed.add(source)
                else:
                    needed |= found[source.at]
            found.append(frozenset(needed))
        return found

    @cached_property
    def _last_use(self) -> dict[ValueId, int]:
        last: dict[ValueId, int] = {}
        for at in range(len(self.operations) - 1):  # what the model returns is not needed
            for id_ in self._needs[at]:
                last[id_] = at
        return last

    def live_at(self, at: int, end: int) -> list[ValueId]:
        """The expensive tensors made before operation `at` and read by one of `at` to `end` - 1.

        Read by an operation between, or behind a scalar that such an operation reads.
        """
        return sorted(
            {id_ for reader in range(at, end) for id_ in self._needs[reader] if id_.at < at}
        )

    @cached_property
    def crossing_cost(self) -> list[int]:
        """For every operation: the elements of expensive tensors that are alive just before it."""
        change = [0] * (len(self.operations) + 1)
        for id_, last in self._last_use.items():
            size = elements(id_.of(self.operations))
            change[id_.at + 1] += size
            change[last + 1] -= size
        costs, alive = [], 0
        for at in range(len(self.operations)):
            alive += change[at]
            costs.append(alive)
        return costs

    def _sources(self, op: ir.Operation) -> Iterator[ValueId]:
        """The results of this block's operations that `op` or an operation inside it reads."""
        for operand in _operands(op):
            id_ = self._position.get(operand)
            if id_ is not None:
                yield id_


def block_operations(module: ir.Operation) -> list[ir.Operation]:
    """The operations of `@main`'s block in order, its return last."""
    block = main_function(module).regions[0].blocks[0]
    return [op.operation for op in block.operations]


def _can_be_kept(type_: ir.Type) -> bool:
    """Whether it is a tensor of ordinary numbers, which a run can return."""
    if not isinstance(type_, ir.RankedTensorType):
        return False
    element = type_.element_type
    return isinstance(element, ir.FloatType | ir.IntegerType)


def elements(value: ir.Value) -> int:
    return prod(UNKNOWN_SIZE if size == abq.DYNAMIC else size for size in abq.shape(value))


def _operands(op: ir.Operation) -> Iterator[ir.Value]:
    if not len(op.regions):
        yield from op.operands
        return
    found: list[ir.Value] = []

    def visit(inner: ir.Operation) -> ir.WalkResult:
        found.extend(inner.operands)
        return ir.WalkResult.ADVANCE

    op.walk(visit)
    yield from found
