"""From a kernel's text to basic blocks of decoded operations.

Device functions are inlined at each call: their registers and parameters are new ones each time, so
recursion is refused. Parameters and results of calls live in local memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from . import instructions as _  # noqa: F401  registers what opcodes mean
from .allocation import share_storage
from .control import Branch, Control, Exit, successors
from .decode import Operation, decode
from .errors import PtxSyntaxError
from .module import Kernel, PtxModule, variables_of
from .operands import Place, Slot
from .order import weak_topological_order
from .syntax import (
    Arguments,
    Function,
    Instruction,
    Label,
    Not,
    Scope,
    Symbol,
    Targets,
    Variable,
)


@dataclass(frozen=True)
class Decoded:
    """An operation of a block; `guard` is its predicate and whether it is negated."""

    instruction: Instruction
    operation: Operation
    guard: tuple[Slot, bool] | None


@dataclass
class Block:
    """Operations of which control leaves only after the last; `next` is the block that follows."""

    steps: list[Decoded]
    labels: dict[str, int] = field(default_factory=dict)
    next: int | None = None


@dataclass(frozen=True)
class SharedLayout:
    """Offsets of shared variables by name; open arrays (dynamic memory) start after the others."""

    offsets: dict[str, int]
    static_bytes: int
    dynamic_offset: int


@dataclass(frozen=True)
class Program:
    """A kernel, decoded: blocks in the order in which the scheduler prefers them.

    `slots` are its registers; `storage` has the number of the array in which each lives.
    """

    kernel: Kernel
    blocks: list[Block]
    slots: list[Slot]
    storage: list[int]
    shared: SharedLayout
    local_bytes: int
    parameter_offsets: dict[str, int]
    parameter_bytes: int

    @cached_property
    def uses_warpgroups(self) -> bool:
        return any(operation.whole_warpgroup for operation in self._operations())

    @cached_property
    def is_asynchronous(self) -> bool:
        """Whether something is ordered otherwise than by barriers of blocks and warps."""
        return any(operation.asynchronous for operation in self._operations())

    @cached_property
    def hands_over(self) -> bool:
        """Whether blocks order what they do in global memory by releases and acquires alone."""
        fences = any(operation.fences_blocks for operation in self._operations())
        return not fences and any(operation.orders_blocks for operation in self._operations())

    @cached_property
    def warpgroup_registers(self) -> dict[int, str]:
        """Numbers and names of the registers that wgmma accumulates in or reads A from."""
        found: dict[int, str] = {}
        for operation in self._operations():
            found |= operation.in_flight
        return found

    def _operations(self) -> Iterator[Operation]:
        return (step.operation for block in self.blocks for step in block.steps)

    @property
    def register_bytes(self) -> int:
        """Bytes of registers that a thread needs."""
        widths = dict(zip(self.storage, (slot.bits // 8 for slot in self.slots), strict=True))
        return sum(width for number, width in widths.items() if number >= 0)

    @property
    def shared_granule(self) -> int:
        """The size of the smallest access to shared memory."""
        sizes = [step.operation.shared_size for block in self.blocks for step in block.steps]
        return min((size for size in sizes if size), default=16)


def layout_shared(kernel: Kernel) -> SharedLayout:
    """Where the shared variables of a kernel lie."""
    variables = [v for v in kernel.module.variables if v.space == "shared"]
    for function in _reachable(kernel.function, kernel.module):
        assert function.body is not None
        variables += [v for v in variables_of(function.body) if v.space == "shared"]
    offsets: dict[str, int] = {}
    end = 0
    for variable in variables:
        if not _is_open(variable):
            end = _aligned(end, variable.alignment)
            offsets[variable.name] = end
            end += variable.bytes
    opened = [variable for variable in variables if _is_open(variable)]
    dynamic = _aligned(end, max([16, *(variable.alignment for variable in opened)]))
    offsets.update({variable.name: dynamic for variable in opened})
    return SharedLayout(offsets, end, dynamic if opened else end)


def _is_open(variable: Variable) -> bool:
    return 0 in variable.shape


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _reachable(function: Function, module: PtxModule) -> list[Function]:
    """The function and those it calls."""
    found = {function.name: function}
    pending = [function]
    while pending:
        for called in _called(pending.pop(), module):
            if called.name not in found:
                found[called.name] = called
                pending.append(called)
    return list(found.values())


def _called(function: Function, module: PtxModule) -> Iterator[Function]:
    for instruction in _instructions(function.body):
        if instruction.opcode == "call":
            for operand in instruction.operands:
                if isinstance(operand, Symbol) and operand.name in module.functions:
                    yield module.functions[operand.name]


def _instructions(scope: Scope | None) -> Iterator[Instruction]:
    for item in scope.items if scope else ():
        if isinstance(item, Instruction):
            yield item
        elif isinstance(item, Scope):
            yield from _instructions(item)


def build(kernel: Kernel) -> Program:
    """Decodes a kernel; PtxSyntaxError where an instruction or a name is unknown."""
    return _Builder(kernel).build()


class _Names:
    """What names mean in one scope; registers of `%r<9>` get a slot when they are first used."""

    def __init__(self, builder: _Builder, outer: _Names | None, unit: str) -> None:
        self.builder = builder
        self.outer = outer
        self.unit = unit
        self.ranges: dict[str, Variable] = {}
        self.slots: dict[str, Slot] = {}
        self.places: dict[str, Place] = {}
        self.tables: dict[str, tuple[str, ...]] = {}
        self.labels: dict[str, str] = {}

    def declare(self, variable: Variable) -> None:
        if variable.space == "reg":
            self.ranges[variable.name] = variable
        else:
            self.places[variable.name] = self.builder.place_of(variable)

    def register(self, name: str) -> Slot | None:
        slot = self.slots.get(name)
        if slot is None and (variable := self._declaration(name)):
            slot = self.slots[name] = self.builder.new_slot(variable)
        return slot or (self.outer.register(name) if self.outer else None)

    def _declaration(self, name: str) -> Variable | None:
        exact = self.ranges.get(name)
        if exact and exact.count is None:
            return exact
        stem = name.rstrip("0123456789")
        ranged = self.ranges.get(stem)
        number = name[len(stem) :]
        if ranged and ranged.count is not None and number and int(number) < ranged.count:
            return ranged
        return None

    def place(self, name: str) -> Place | None:
        return self.places.get(name) or (self.outer.place(name) if self.outer else None)

    def label(self, name: str) -> str:
        """Labels belong to the scope that they stand in, as registers do."""
        if name in self.labels or self.outer is None or self.outer.unit != self.unit:
            return self.labels.get(name, f"{self.unit}{name}")
        return self.outer.label(name)

    def targets(self, name: str) -> tuple[str, ...]:
        if name in self.tables or self.outer is None:
            return self.tables.get(name, ())
        return self.outer.targets(name)


class _Builder:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.module = kernel.module
        self.slots: list[Slot] = []
        self.shared = layout_shared(kernel)
        self.local_bytes = 0
        self.units = 0
        self.labels = 0
        self.items: list[str | Decoded] = []

    def build(self) -> Program:
        names = _Names(self, None, "")
        for variable in self.module.variables:
            names.declare(variable)
        offsets, end = self._parameters(names)
        self._function(self.kernel.function, names, "", None, ())
        blocks = _blocks(self.items)
        return Program(
            self.kernel,
            blocks,
            self.slots,
            share_storage(blocks, self.slots),
            self.shared,
            self.local_bytes,
            offsets,
            end,
        )

    def _parameters(self, names: _Names) -> tuple[dict[str, int], int]:
        """Kernel parameters lie one after the other, as the driver lays them out."""
        offsets: dict[str, int] = {}
        end = 0
        for parameter in self.kernel.parameters:
            offset = _aligned(end, parameter.alignment)
            offsets[parameter.name] = offset
            end = offset + parameter.bytes
            names.places[parameter.name] = Place("param", "", offset, parameter.bytes)
        return offsets, end

    def new_slot(self, variable: Variable) -> Slot:
        if variable.vector != 1:
            raise PtxSyntaxError("registers of vectors are not supported", variable.line)
        is_predicate = variable.type.kind == "p"
        slot = Slot(len(self.slots), variable.type.bits, is_predicate)
        self.slots.append(slot)
        return slot

    def place_of(self, variable: Variable) -> Place:
        name, size = variable.name, variable.bytes
        if variable.space == "shared":
            return Place("shared", "", self.shared.offsets[name], size)
        if variable.space in ("local", "param"):
            offset = _aligned(self.local_bytes, max(variable.alignment, 4))
            self.local_bytes = offset + size
            return Place("local", "", offset, size)
        return Place("global", name, 0, size)

    # -- bodies

    def _function(
        self,
        function: Function,
        names: _Names,
        unit: str,
        continuation: str | None,
        callers: tuple[str, ...],
    ) -> None:
        """Adds a body; its `ret` goes to `continuation`, or ends the thread."""
        if function.name in callers:
            raise PtxSyntaxError(f"recursion through {function.name}", function.line)
        assert function.body is not None
        inner = _Names(self, names, unit)
        self._scope(function.body, inner, continuation, (*callers, function.name))
        end = Instruction("ret", (), (), None, function.line, "(end of the body)")
        self._return(end, inner, continuation)

    def _scope(
        self, scope: Scope, names: _Names, continuation: str | None, callers: tuple[str, ...]
    ) -> None:
        for item in scope.items:
            if isinstance(item, Variable):
                names.declare(item)
            elif isinstance(item, Label):
                names.labels[item.name] = self._unique_label(item, names)
        for item in scope.items:
            if isinstance(item, Targets):
                names.tables[item.name] = tuple(names.label(label) for label in item.labels)
        for item in scope.items:
            if isinstance(item, Label):
                self.items.append(names.label(item.name))
            elif isinstance(item, Scope):
                self._scope(item, _Names(self, names, names.unit), continuation, callers)
            elif isinstance(item, Instruction) and item.opcode == "call":
                self._call(item, names, callers)
            elif isinstance(item, Instruction) and item.opcode == "ret":
                self._return(item, names, continuation)
            elif isinstance(item, Instruction):
                self._add(item, decode(item, names), names)

    def _unique_label(self, label: Label, names: _Names) -> str:
        if label.name in names.labels:
            raise PtxSyntaxError(f"label {label.name} stands twice", label.line)
        self.labels += 1
        return f"{names.unit}{self.labels}:{label.name}"

    def _add(self, instruction: Instruction, operation: Operation, names: _Names) -> None:
        self.items.append(Decoded(instruction, operation, self._guard(instruction, names)))

    def _guard(self, instruction: Instruction, names: _Names) -> tuple[Slot, bool] | None:
        guard = instruction.guard
        if guard is None:
            return None
        register = guard.operand if isinstance(guard, Not) else guard
        slot = names.register(register.name)
        if slot is None or not slot.is_predicate:
            raise PtxSyntaxError(
                f"{register.name} is not a predicate", instruction.line, instruction.text
            )
        return slot, isinstance(guard, Not)

    def _return(self, item: Instruction, names: _Names, continuation: str | None) -> None:
        self._add(item, Exit() if continuation is None else Branch(continuation), names)

    def _call(self, item: Instruction, names: _Names, callers: tuple[str, ...]) -> None:
        """`call (results), name, (arguments)`: results and arguments are variables in `.param`."""
        if item.guard is not None:
            raise PtxSyntaxError("calls with a guard are not supported", item.line, item.text)
        symbol = next((x for x in item.operands if isinstance(x, Symbol)), None)
        function = self.module.functions.get(symbol.name) if symbol else None
        if function is None:
            raise PtxSyntaxError("only functions of the module can be called", item.line, item.text)
        lists = [x.elements for x in item.operands if isinstance(x, Arguments)]
        before = isinstance(item.operands[0], Arguments)
        results = lists[0] if before else ()
        arguments = lists[-1] if len(lists) > before else ()
        self.units += 1
        unit = f"{self.units}:{function.name}:"
        inner = _Names(self, self._outermost(names), unit)
        for declared, given in (
            *zip(function.parameters, arguments, strict=True),
            *zip(function.returns, results, strict=True),
        ):
            place = names.place(given.name) if isinstance(given, Symbol) else None
            if place is None:
                raise PtxSyntaxError("arguments must be .param variables", item.line, item.text)
            inner.places[declared.name] = place
        self._function(function, inner, unit, f"{unit}end", callers)
        self.items.append(f"{unit}end")

    def _outermost(self, names: _Names) -> _Names:
        while names.outer is not None:
            names = names.outer
        return names


# ---- basic blocks


def _blocks(items: list[str | Decoded]) -> list[Block]:
    """Cuts at labels, after control, and before instructions for whole warps."""
    blocks: list[Block] = [Block([])]
    at: dict[str, int] = {}
    for item in items:
        last = blocks[-1].steps
        if isinstance(item, str):
            if last:
                blocks.append(Block([]))
            at[item] = len(blocks) - 1
            continue
        if last and (last[-1].operation.ends_block or item.operation.needs_others):
            blocks.append(Block([]))
        blocks[-1].steps.append(item)
    if not blocks[-1].steps:
        blocks.pop()
    _connect(blocks, at)
    return _ordered(blocks)


def _connect(blocks: list[Block], at: dict[str, int]) -> None:
    for index, block in enumerate(blocks):
        last = block.steps[-1]
        labels: Sequence[str] = ()
        falls = True
        if isinstance(last.operation, Control):
            labels, falls = successors(last.operation, last.guard is not None)
        for label in labels:
            if label not in at:
                name = label.rsplit(":", 1)[-1]
                raise PtxSyntaxError(
                    f"label {name} is not declared", last.instruction.line, last.instruction.text
                )
            block.labels[label] = at[label]
        if falls and index + 1 < len(blocks):
            block.next = index + 1


def _ordered(blocks: list[Block]) -> list[Block]:
    """Blocks that can be reached, loops contiguous and before what follows them."""
    following = [
        [*block.labels.values(), *([] if block.next is None else [block.next])] for block in blocks
    ]
    order = weak_topological_order(following)
    rank = {old: new for new, old in enumerate(order)}
    for old in order:
        block = blocks[old]
        block.labels = {label: rank[target] for label, target in block.labels.items()}
        block.next = None if block.next is None else rank[block.next]
    return [blocks[old] for old in order]
