"""abqc: compile ONNX models into shared libraries that run at any bit width.

The façade is lazy: `import abqc` needs nothing but Python, `abqc.load` needs numpy,
and MLIR is imported by the first `abqc.compile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abqc.errors import AbqcError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from abqc.compiler.driver import compile as compile
    from abqc.runtime.model import Model as Model
    from abqc.runtime.model import load as load

_FACADE = {
    "compile": "abqc.compiler.driver",
    "load": "abqc.runtime.model",
    "Model": "abqc.runtime.model",
}

__all__ = ["AbqcError", "Model", "compile", "load"]


def __getattr__(name: str) -> Any:
    if name not in _FACADE:
        raise AttributeError(f"module 'abqc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_FACADE[name]), name)
