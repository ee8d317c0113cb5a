"""Passes on text: what `abqc opt` runs."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.errors import CompileError

from .infrastructure import Unit, available, run_pipeline

__all__ = ["available", "run_passes"]


def run_passes(text: str, names: Sequence[str], unit: Unit | None = None) -> str:
    """The module `text` after the passes `names`, ours or upstream pipeline texts, in order.

    Passes that read more than the IR (recipes, weights) need a `unit`. Raises CompileError, whose
    subclass PassFailure holds what the failing pass was given.
    """
    context = make_context()
    with context:
        try:
            module = ir.Module.parse(text)
        except ir.MLIRError as error:
            raise CompileError(f"the module cannot be parsed: {error}") from error
        unit = unit or Unit()
        if isinstance(unit.outlined, str):
            unit.outlined = ir.Module.parse(unit.outlined)
        run_pipeline(module.operation, names, unit)
        return module.operation.get_asm()
