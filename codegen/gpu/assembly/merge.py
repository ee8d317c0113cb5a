"""Kernels that were compiled one by one, as one module of PTX.

The PTX of a kernel has a head (version, target, size of addresses), declarations of what it uses
besides its parameters (shared memory, tables of constants), and its entry. The head is the same for
all kernels of a target; kernels may declare the same things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from abqc.errors import CompileError

from .compile import LaunchShape, Ptx

_END_OF_HEAD = ".address_size 64\n"
_ENTRY = ".visible .entry "
_DECLARED = re.compile(r"([\w$]+)(?:\[\d*\])?\s*(?:=.*)?;", re.DOTALL)  # its name
_TOP_LEVEL = re.compile(r"^\.(?:func|visible|weak|extern|global|const|shared)\b", re.MULTILINE)


def merge(parts: Sequence[Ptx]) -> Ptx:
    """One module with the kernels of all `parts`, in their order; each has one."""
    heads: set[str] = set()
    declarations: dict[str, str] = {}
    entries: list[str] = []
    kernels: dict[str, LaunchShape] = {}
    for part in parts:
        head, declared, entry = _split(part)
        heads.add(head)
        for line in declared:
            name = _name(line)
            if declarations.setdefault(name, line) != line:
                raise CompileError(f"kernels declare different things as {name}")
        entries.append(entry)
        kernels |= part.kernels
    (head,) = heads
    text = "\n".join([head, *declarations.values(), "", *entries])
    return Ptx(text, parts[0].arch, kernels)


def _split(part: Ptx) -> tuple[str, list[str], str]:
    """Head, declarations, entry."""
    (name,) = part.kernels
    head, _, rest = part.text.partition(_END_OF_HEAD)
    before, _, entry = rest.partition(_ENTRY)
    lines = [line for line in before.splitlines() if line and not line.lstrip().startswith("//")]
    if not entry or _TOP_LEVEL.search(entry):
        raise CompileError(f"the PTX of kernel {name} is not one entry")
    return head + _END_OF_HEAD, lines, _ENTRY + entry


def _name(declaration: str) -> str:
    found = _DECLARED.search(declaration)
    if found is None:
        raise CompileError(f"no declaration of PTX: {declaration[:200]}")
    return found[1]
