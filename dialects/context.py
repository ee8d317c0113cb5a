"""Contexts of MLIR that know every dialect the compiler uses."""

from __future__ import annotations

from . import (  # noqa: F401  (their classes are the operations that Abq loads)
    abq_caches,
    abq_conv,
    abq_integers,
    abq_order,
    abq_products,
    abq_recurrent,
)
from .abq import Abq
from .mlir import ir

_prepared: list[ir.Context] = []


def prepare_context() -> None:
    """Make a context for the next `make_context`: of this process, and of each fork of it."""
    if not _prepared:
        _prepared.append(make_context())


def make_context() -> ir.Context:
    """A context that knows every dialect the compiler uses, `abq` included.

    It starts no threads, so that the process can fork (codegen/kernel_job.py).
    """
    if _prepared:
        return _prepared.pop()
    context = ir.Context()
    context.enable_multithreading(False)
    with context, ir.Location.unknown():
        Abq.load()
    return context
