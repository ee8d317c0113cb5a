"""Facts about IR after passes, for tests that look at structure instead of text."""

from __future__ import annotations

from collections.abc import Iterator

from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit
from abqc.passes.pipeline import run_passes


class Facts:
    """A module, parsed again; `facts("scf.for")` lists its operations of one name in order."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._context = make_context()
        with self._context:
            self.module = ir.Module.parse(text)

    def __call__(self, name: str) -> list[ir.Operation]:
        return [op for op in self._operations() if op.name == name]

    def names(self) -> list[str]:
        return [op.name for op in self._operations()]

    def function(self, name: str = "main") -> ir.Operation:
        (found,) = (op for op in self("func.func") if op.attributes["sym_name"].value == name)
        return found

    def messages(self) -> list[str]:
        """Of the checks at run time."""
        return [op.attributes["msg"].value for op in self("cf.assert")]

    def calls(self) -> list[str]:
        return [op.attributes["callee"].value for op in self("func.call")]

    def _operations(self) -> Iterator[ir.Operation]:
        found: list[ir.Operation] = []

        def visit(op: ir.Operation) -> ir.WalkResult:
            found.append(op)
            return ir.WalkResult.ADVANCE

        self.module.operation.walk(visit, ir.WalkOrder.PRE_ORDER)
        return iter(found)


def after(text: str, *passes: str, unit: Unit | None = None) -> Facts:
    return Facts(run_passes(text, passes, unit))


def maker(value: ir.Value) -> str:
    """The name of the operation that makes a value, "argument" for those of blocks."""
    return "argument" if isinstance(value.owner, ir.Block) else value.owner.name
