"""What kernels do with the memory behind their parameters, read off their lowered functions.

A pointer is followed from the parameter through address arithmetic, selects and branches to what
loads and stores there. What the walk does not know may both read and write, so an answer errs
towards more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntFlag

from abqc.dialects.mlir import ir


class Access(IntFlag):
    """Of a parameter; ABQC_ACCESS_* in runtime/shim/shim.h. No integer has any."""

    NONE = 0
    READ = 1
    WRITTEN = 2
    EARLY = 4  # maybe before the kernel waits for those that it depends on: it must be a weight


UNKNOWN = Access.READ | Access.WRITTEN

# Ops that make an address of an address, or hand it on, and touch nothing.
_ADDRESSES = frozenset(
    "llvm." + name
    for name in (
        "getelementptr",
        "addrspacecast",
        "bitcast",
        "select",
        "freeze",
        "insertvalue",
        "extractvalue",
        "ptrtoint",
        "inttoptr",
        "add",
    )
)
_COMPARES = frozenset({"llvm.icmp", "llvm.return"})

# Inline assembly that does nothing but read global memory, by the beginnings of its instructions.
_READING = ("ld.global.", "prefetch.global.", "prefetch.tensormap", "cp.async.bulk.prefetch.")


@dataclass
class Uses:
    """What happens to the memory that a value leads to."""

    access: Access = Access.NONE
    invariant_loads: list[ir.Operation] = field(default_factory=list)  # of it, as `.nc`


def parameter_uses(function: ir.Operation) -> list[Uses]:
    """By parameter of a lowered function: what is done with the memory that it points to. Integers
    are no pointers, unless the function makes some of integers."""
    entry, *rest = function.regions[0].blocks
    operations = [op.operation.name for block in (entry, *rest) for op in block.operations]
    from_integers = "llvm.inttoptr" in operations
    return [
        uses_of(argument) if from_integers or is_pointer(argument) else Uses()
        for argument in entry.arguments
    ]


def is_pointer(value: ir.Value) -> bool:
    return str(value.type).startswith("!llvm.ptr")


def uses_of(value: ir.Value) -> Uses:
    """Everything that is done with a pointer, directly or by what is computed from it."""
    found = Uses()
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for use in current.uses:
            pending += _follow(use.owner.operation, use.operand_number, found)
    return found


def _follow(op: ir.Operation, number: int, found: Uses) -> list[ir.Value]:
    """Notes one use; gives the values that lead to the same memory."""
    handler = _HANDLERS.get(op.name)
    if handler is not None:
        return handler(op, number, found)
    if op.name in _ADDRESSES:
        return list(op.results)
    if op.name in _COMPARES:
        return []
    if len(op.successors):
        return list(_block_arguments(op, number))
    found.access |= UNKNOWN
    return list(op.results)


def _load(op: ir.Operation, number: int, found: Uses) -> list[ir.Value]:
    found.access |= Access.READ
    if "invariant" in op.attributes:
        found.invariant_loads.append(op)
    return []


def _store(op: ir.Operation, number: int, found: Uses) -> list[ir.Value]:
    found.access |= Access.WRITTEN if number == 1 else UNKNOWN  # 0: the pointer itself is stored
    return []


def _intrinsic(op: ir.Operation, number: int, found: Uses) -> list[ir.Value]:
    name = ir.StringAttr(op.attributes["intrin"]).value
    copies = name.startswith("llvm.nvvm.cp.async.") and ".shared.global." in name
    found.access |= Access.READ if copies and number == 1 else UNKNOWN
    return [] if copies else list(op.results)


def _assembly(op: ir.Operation, number: int, found: Uses) -> list[ir.Value]:
    found.access |= _of_assembly(op)
    return []


def _of_assembly(op: ir.Operation) -> Access:
    """Assembly without side effects gives what it loads; other is known by its instructions."""
    if "has_side_effects" not in op.attributes:
        return Access.READ
    text = ir.StringAttr(op.attributes["asm_string"]).value
    lines = [line.strip(" {}\t\n") for line in text.split(";")]
    return Access.READ if all(_only_reads(line) for line in lines if line) else UNKNOWN


def _only_reads(line: str) -> bool:
    copies = line.startswith("cp.async.") and 0 < line.find(".shared") < line.find(".global")
    return copies or line.startswith(_READING)


_HANDLERS: dict[str, Callable[[ir.Operation, int, Uses], list[ir.Value]]] = {
    "llvm.load": _load,
    "llvm.store": _store,
    "llvm.call_intrinsic": _intrinsic,
    "llvm.inline_asm": _assembly,
}


def _block_arguments(op: ir.Operation, number: int) -> Iterator[ir.Value]:
    """Where a branch hands its operand on to: with several successors, perhaps to any of theirs."""
    if op.name == "llvm.br":
        yield op.successors[0].arguments[number]
        return
    type_ = op.operands[number].type
    for successor in op.successors:
        yield from (a for a in successor.arguments if a.type == type_)
