"""What cost models read of a kernel: the operations and the tokens of its MLIR, as printed.

A token is an operation with the last type on its line, `arith.addi vector<16xi32>`; a constant of
type index has its magnitude, a power of two, instead: `arith.constant 2^7`; `}` ends a region. A
call of an intrinsic has the name of that. SSA names and other attributes are left out.
"""

from __future__ import annotations

import re
from collections import Counter

_LINE = re.compile(
    r"^ *(?:(?P<end>\})|(?:%[\w:]+ = )?\"?(?P<name>[a-z_]\w*\.[\w.]+)\"?(?P<rest>[^\n]*))",
    re.MULTILINE,
)
_INDEX = re.compile(r" (-?\d+) : index$")
_INTRINSIC = re.compile(r' "([\w.]+)"')
_TYPE = re.compile(r"(?:vector<[^<>]*>|memref<[^<>]*>|\bindex\b|\b(?:i|f|bf)\d+\b)")


def operations(text: str) -> tuple[tuple[str, int], ...]:
    """How often each operation stands in a module, by name in the order of names."""
    counts = Counter(
        _name(match["name"], match["rest"]) for match in _LINE.finditer(text) if match["name"]
    )
    return tuple(sorted(counts.items()))


def tokens(text: str) -> list[str]:
    """The tokens of a module, in order."""
    return [
        "}" if match["end"] else _token(match["name"], match["rest"])
        for match in _LINE.finditer(text)
    ]


def _name(name: str, rest: str) -> str:
    intrinsic = _INTRINSIC.match(rest) if name == "llvm.call_intrinsic" else None
    return intrinsic[1] if intrinsic else name


def _token(name: str, rest: str) -> str:
    name = _name(name, rest)
    index = _INDEX.search(rest)
    if index:
        return f"{name} 2^{int(index[1]).bit_length()}"
    types = _TYPE.findall(rest)
    return f"{name} {types[-1]}" if types else name
