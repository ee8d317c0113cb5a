"""llvm without the classes of its operations, which take long to import.

Its operations are then plain `ir.OpView`s. GPU code, which builds many of them, imports the wheel's
`dialects.llvm` (`mlir.llvm`); code for CPUs builds the few that it needs by name.
"""

from __future__ import annotations

from torch_mlir import ir
from torch_mlir._mlir_libs._mlirDialectsLLVM import PointerType, translate_module_to_llvmir

__all__ = ["PointerType", "linkage", "translate_module_to_llvmir"]


def linkage(name: str) -> ir.Attribute:
    """The attribute of functions and globals: `internal`, `external`, `private`."""
    return ir.Attribute.parse(f"#llvm.linkage<{name}>")  # it has no class
