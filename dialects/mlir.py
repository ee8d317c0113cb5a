"""What imports the MLIR bindings, which today live in the torch-mlir wheel: this and `bindings/`.

`llvm` and `nvvm` are imported when they are first asked for: only code for GPUs needs them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch_mlir import _mlir_libs, ir
from torch_mlir._mlir_libs._mlir import globals as _bindings
from torch_mlir.dialects import (
    affine,
    arith,
    bufferization,
    cf,
    ext,
    func,
    math,
    memref,
    scf,
    tensor,
    vector,
)
from torch_mlir.passmanager import PassManager

from .bindings import linalg
from .bindings.llvm import PointerType, linkage, translate_module_to_llvmir

# Where the bindings look for a dialect's classes when they meet one of its operations.
_bindings.dialect_search_modules = [
    "abqc.dialects.bindings",
    *_bindings.dialect_search_modules,
]

__all__ = [
    "PassManager",
    "PointerType",
    "affine",
    "arith",
    "bindings_identity",
    "bufferization",
    "cf",
    "ext",
    "func",
    "ir",
    "linalg",
    "linkage",
    "math",
    "memref",
    "run_upstream",
    "scf",
    "tensor",
    "translate_module_to_llvmir",
    "vector",
]

_LATE = {
    "llvm": "torch_mlir.dialects.llvm",
    "nvvm": "torch_mlir.dialects.nvvm",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return importlib.import_module(_LATE[name])


def run_upstream(pipeline: str, module: ir.Operation) -> None:
    """Run upstream passes, given as text: `func.func(canonicalize,cse)`. Raises MLIRError.

    Verified is what all of them have made, not what each has: that takes as long as the passes.
    """
    with module.context:
        manager = PassManager.parse(f"builtin.module({pipeline})")
        manager.enable_verifier(False)
        manager.run(module)
        module.verify()


def bindings_identity() -> str:
    """What differs between versions of the bindings: the sizes and times of their libraries."""
    files = [path.stat() for path in sorted(Path(_mlir_libs.__path__[0]).glob("*.so*"))]
    return " ".join(f"{file.st_size}:{file.st_mtime_ns}" for file in files)
