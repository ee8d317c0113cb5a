"""A parsed PTX module and its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .syntax import Function, Scope, Variable

if TYPE_CHECKING:
    from .program import Program


@dataclass(frozen=True)
class Kernel:
    """An entry point: `parameters` in order, with their types."""

    function: Function
    module: PtxModule

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def parameters(self) -> tuple[Variable, ...]:
        return self.function.parameters

    @property
    def max_threads(self) -> int | None:
        """The most threads a block may have (`.maxntid`, or `.reqntid`)."""
        return _product(self.function.bounds.get("maxntid")) or self.required_threads

    @property
    def required_threads(self) -> int | None:
        """The number of threads a block must have (`.reqntid`)."""
        return _product(self.function.bounds.get("reqntid"))

    @cached_property
    def program(self) -> Program:
        """Decoded, for any device. Raises PtxSyntaxError."""
        from .program import build

        return build(self)

    @property
    def shared_bytes(self) -> int:
        """Bytes of static shared memory."""
        from .program import layout_shared

        return layout_shared(self).static_bytes


def _product(extents: tuple[int, ...] | None) -> int | None:
    if not extents:
        return None
    total = 1
    for extent in extents:
        total *= extent
    return total


class PtxModule:
    """`version`, `target` (the words after `.target`), module-scope `variables`, `functions`."""

    def __init__(
        self,
        version: tuple[int, int],
        target: tuple[str, ...],
        variables: tuple[Variable, ...],
        functions: tuple[Function, ...],
    ) -> None:
        self.version = version
        self.target = target[0] if target else ""
        self.variables = variables
        defined = [function for function in functions if function.body is not None]
        self.functions: Mapping[str, Function] = {function.name: function for function in defined}

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        return {
            name: Kernel(function, self)
            for name, function in self.functions.items()
            if function.is_kernel
        }


def variables_of(scope: Scope) -> list[Variable]:
    """All declarations in a body, those of inner scopes included."""
    found: list[Variable] = []
    for item in scope.items:
        if isinstance(item, Variable):
            found.append(item)
        elif isinstance(item, Scope):
            found.extend(variables_of(item))
    return found
