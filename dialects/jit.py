"""Machine code of LLVM, loaded into this process. Needs llvmlite, nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable

import llvmlite.binding as llvm
from llvmlite.binding.orcjit import ResourceTracker


def load(code: bytes, symbols: Iterable[str]) -> ResourceTracker:
    """The addresses of `symbols`, by name, of an ELF object; valid as long as the result lives.

    JITLink puts all sections into one reservation. MCJIT maps each by itself, and in a process with
    much mapped memory two may end up further apart than the 2 GB that code addresses relative to
    itself: LLVM then aborts the process.
    """
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    for symbol in symbols:
        library.export_symbol(symbol)
    return library.link(llvm.create_lljit_compiler(use_jit_link=True), "code")
