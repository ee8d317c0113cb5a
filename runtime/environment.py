"""Every environment variable that is read: what it means, and its value.

Those of the runtime are read by the C shim of every artifact too. The compiler that CC names is
part of the key under which the compiled shim is kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Variable(Generic[T]):
    """`parse` gives None for a text that is no value."""

    name: str
    meaning: str
    parse: Callable[[str], T | None]

    @property
    def text(self) -> str:
        """As it is set; empty where it is not."""
        return os.environ.get(self.name, "")

    def get(self) -> T | None:
        """Its value; None where it is not set, or set to none."""
        return self.parse(self.text) if self.text else None


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _switch(text: str) -> bool | None:
    return {"0": False, "1": True}.get(text)


NUM_THREADS = Variable("ABQC_NUM_THREADS", "number of threads; the usable cores without it", _count)
ISA = Variable(
    "ABQC_ISA",
    "use the kernels for this instruction set (see inspect); the best that the CPU has without it",
    str,
)
CPU = Variable("ABQC_CPU", "what --cpu says where it is not given; all without it", str)
CUDA_GRAPHS = Variable(
    "ABQC_CUDA_GRAPHS", "0: kernels are launched one by one, not as CUDA graphs", _switch
)
CUDA_DEPENDENT_LAUNCH = Variable(
    "ABQC_CUDA_DEPENDENT_LAUNCH",
    "0: no kernel of a CUDA graph begins before those that it depends on have ended",
    _switch,
)
CACHE = Variable(
    "ABQC_CACHE",
    "folder of what is kept: the tuned cost model, the compiled shim and kernels, what a failing "
    "pass was given, onnxruntime's quantized models; ~/.cache/abqc without it",
    Path,
)
XDG_CACHE_HOME = Variable("XDG_CACHE_HOME", "folder of caches, instead of ~/.cache", Path)
CC = Variable("CC", "the C compiler and its options", str.split)
CUDA_HOME = Variable("CUDA_HOME", "the CUDA toolkit, for ptxas and nvdisasm", Path)

VARIABLES: tuple[Variable, ...] = (
    NUM_THREADS,
    ISA,
    CPU,
    CUDA_GRAPHS,
    CUDA_DEPENDENT_LAUNCH,
    CACHE,
    XDG_CACHE_HOME,
    CC,
    CUDA_HOME,
)


def snapshot() -> dict[str, str]:
    """All variables as they are set, for another process to `adopt`."""
    return dict(os.environ)


def adopt(variables: Mapping[str, str]) -> None:
    """Set these variables and no others."""
    os.environ.clear()
    os.environ.update(variables)


# How the libraries behind numpy are told how many threads to take; each reads its own, once. What
# numpy computes depends on that number.
_NUMPY_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "OMP_NUM_THREADS",
)


def with_one_thread() -> dict[str, str]:
    """All variables as they are set, for another process whose numpy computes on one thread."""
    return snapshot() | dict.fromkeys(_NUMPY_THREADS, "1")


def asks_for_one_thread() -> bool:
    """Whether this process's numpy has been told to compute on one thread."""
    return any(os.environ.get(name) == "1" for name in _NUMPY_THREADS)


def set_temporary_folder(folder: Path) -> None:
    """Where this process and those that it starts put temporary files."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def cache_folder() -> Path:
    """Where what is built or measured once and used again is kept; it need not exist."""
    return CACHE.get() or (XDG_CACHE_HOME.get() or Path.home() / ".cache") / "abqc"
