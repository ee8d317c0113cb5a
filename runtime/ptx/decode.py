"""From an instruction's words to an operation on registers.

Decoding happens once for a kernel: names become slots, literals numpy scalars, modifiers are taken
one by one, and one that nobody took is an error. What an opcode means stands in `instructions/`,
in functions that register themselves here:

    @instruction("and", "or", "xor")
    def logic(i: Decoder) -> Operation: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PtxSyntaxError
from .lanes import Lanes, put, take
from .operands import AddressOf, Constant, Names, RegisterView, Slot, Source, Special
from .syntax import (
    Address,
    Float,
    Instruction,
    Integer,
    Not,
    Operand,
    Pair,
    Register,
    Sink,
    Symbol,
    TensorAddress,
    Vector,
)
from .types import TYPES, ScalarType

if TYPE_CHECKING:
    from .batch import Batch

Run = Callable[[Lanes | None], None]


# ---- operations


class Operation:
    """What an instruction does, before it is known on how many lanes.

    `rendezvous`: the member mask of an instruction for whole warps (None: the instruction needs
    nobody else). `whole_warp`: it needs all 32 lanes; `whole_warpgroup`: all 128 of four warps.
    `asynchronous`: it has to do with mbarriers, bulk copies or wgmma. `ends_block`: control may go
    elsewhere afterwards. `shared_size`: bytes of shared memory that it may access at once, 0 for
    none. `orders_blocks`: it acquires from other blocks or releases to them; `fences_blocks`: a
    fence that does.
    `reads`, `writes`: numbers of registers. `in_flight`: those (with their names) that a wgmma uses
    after it was issued.
    """

    rendezvous: Source | None = None
    whole_warp = False
    whole_warpgroup = False
    asynchronous = False
    ends_block = False
    orders_blocks = False
    fences_blocks = False
    shared_size = 0
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    in_flight: Mapping[int, str] = {}

    @property
    def needs_others(self) -> bool:
        """Whether lanes may have to wait for others of their warp."""
        return self.rendezvous is not None or self.whole_warp

    def bind(self, batch: Batch) -> Run:
        """The operation on the registers of one batch."""
        raise NotImplementedError


class Effect(Operation):
    """An operation given by its `bind`."""

    def __init__(self, bind: Callable[[Batch], Run]) -> None:
        self._bind = bind

    def bind(self, batch: Batch) -> Run:
        return self._bind(batch)


class Lanewise(Operation):
    """Each lane by itself: `results = function(*sources)`.

    `function` takes and returns arrays (or scalars, where no source differs between lanes); a
    ufunc writes straight into the result register.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        result: RegisterView | None,
        *sources: Source,
    ) -> None:
        self.function = function
        self.result = result
        self.sources = sources

    def bind(self, batch: Batch) -> Run:
        if self.result is None:
            return lambda lanes: None
        function = self.function
        out = self.result.array(batch)
        sources = [source.array(batch) for source in self.sources]
        if isinstance(function, np.ufunc):
            whole = _ufunc_into(function, sources, out)
        else:

            def whole() -> None:
                out[...] = function(*sources)

        def run(lanes: Lanes | None) -> None:
            if lanes is None:
                whole()
            elif lanes.is_dense:
                np.copyto(out, function(*sources), where=lanes.mask, casting="unsafe")
            else:
                out[lanes.indices] = function(*[take(source, lanes) for source in sources])

        return run


def _ufunc_into(
    function: np.ufunc, sources: list[np.ndarray], out: np.ndarray
) -> Callable[[], None]:
    """`function(*sources)` written to `out` without a temporary."""
    if len(sources) == 1:
        a = sources[0]
        return lambda: function(a, out=out, casting="unsafe")
    a, b = sources
    return lambda: function(a, b, out=out, casting="unsafe")


class Results(Operation):
    """Like Lanewise with several results: `function` returns a tuple."""

    def __init__(
        self,
        function: Callable[..., tuple[np.ndarray, ...]],
        results: tuple[RegisterView | None, ...],
        *sources: Source,
    ) -> None:
        self.function = function
        self.results = results
        self.sources = sources

    def bind(self, batch: Batch) -> Run:
        outs = [result.array(batch) if result else None for result in self.results]
        sources = [source.array(batch) for source in self.sources]
        function = self.function

        def run(lanes: Lanes | None) -> None:
            values = function(*[take(source, lanes) for source in sources])
            for out, value in zip(outs, values, strict=True):
                if out is not None:
                    put(out, lanes, value)

        return run


# ---- the decoder

INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {}


def instruction(*opcodes: str) -> Callable[[Callable], Callable]:
    """Registers a function that decodes these opcodes."""

    def register(function: Callable[[Decoder], Operation]) -> Callable[[Decoder], Operation]:
        for opcode in opcodes:
            INSTRUCTIONS[opcode] = function
        return function

    return register


class Decoder:
    """One instruction while it is decoded."""

    def __init__(self, instruction: Instruction, names: Names) -> None:
        self.instruction = instruction
        self.names = names
        self.operands = tuple(_named(operand, names) for operand in instruction.operands)
        self._modifiers = list(instruction.modifiers)
        self.reads: set[int] = set()
        self.writes: set[int] = set()

    @property
    def opcode(self) -> str:
        return self.instruction.opcode

    def error(self, message: str) -> PtxSyntaxError:
        return PtxSyntaxError(message, self.instruction.line, self.instruction.text)

    # -- modifiers

    def flag(self, *names: str) -> bool:
        """Takes the first of `names` that is there; whether there was one."""
        return self.choose(*names) is not None

    def choose(self, *names: str) -> str | None:
        """Takes and returns the modifier that is one of `names`, or None."""
        for modifier in self._modifiers:
            if modifier in names:
                self._modifiers.remove(modifier)
                return modifier
        return None

    def need(self, *names: str) -> str:
        """Like `choose`, where one must be there."""
        found = self.choose(*names)
        if found is None:
            raise self.error(f"one of .{', .'.join(names)} is missing")
        return found

    def ignore(self, *names: str) -> None:
        """Takes modifiers that mean nothing here: hints for caches, scopes, orderings."""
        while self.flag(*names):
            pass

    def type(self) -> ScalarType:
        """Takes the next type among the modifiers."""
        for modifier in self._modifiers:
            if modifier in TYPES:
                self._modifiers.remove(modifier)
                return TYPES[modifier]
        raise self.error("the type is missing or not supported")

    def has_type(self) -> bool:
        return any(modifier in TYPES for modifier in self._modifiers)

    def rest(self) -> list[str]:
        return self._modifiers

    def arity(self, *counts: int) -> int:
        """The number of operands, which must be one of `counts`."""
        if len(self.operands) not in counts:
            raise self.error(f"{len(self.operands)} operands where {counts} are expected")
        return len(self.operands)

    # -- operands

    def source(self, index: int, type: ScalarType, relaxed: bool = False) -> Source:
        return self.read(self.operands[index], type, relaxed)

    def read(self, operand: Operand, type: ScalarType, relaxed: bool = False) -> Source:
        """An operand read as `type`; registers may be wider where `relaxed`."""
        dtype = type.dtype
        if isinstance(operand, Register):
            slot = self.names.register(operand.name)
            if slot is None:
                return self._special(operand.name, dtype)
            self._check_width(slot, type, relaxed)
            self.reads.add(slot.number)
            return RegisterView(slot, dtype)
        if isinstance(operand, Integer):
            return Constant(self._integer(operand.value, type))
        if isinstance(operand, Float):
            return Constant(self._float(operand, type))
        if isinstance(operand, Symbol):
            return self.address_of(operand, type)
        raise self.error("this operand cannot be read here")

    def address_of(self, symbol: Symbol, type: ScalarType) -> Source:
        if symbol.name == "WARP_SZ":
            return Constant(type.dtype.type(32))
        place = self.names.place(symbol.name)
        if place is None:
            raise self.error(f"{symbol.name} is not declared")
        unsigned = TYPES[f"u{type.bits}"].dtype
        return AddressOf(place.space, place.name, place.offset + symbol.offset, unsigned)

    def predicate(self, operand: Operand) -> tuple[RegisterView, bool]:
        """The register of a predicate operand, and whether it is negated."""
        register = operand.operand if isinstance(operand, Not) else operand
        if not isinstance(register, Register):
            raise self.error("a predicate is expected")
        slot = self.names.register(register.name)
        if slot is None or not slot.is_predicate:
            raise self.error(f"{register.name} is not a predicate")
        self.reads.add(slot.number)
        return RegisterView(slot, TYPES["pred"].dtype), isinstance(operand, Not)

    def predicate_source(self, operand: Operand) -> Callable[[Batch], Callable]:
        """Binds to a function of the lanes that gives the predicate's value."""
        if isinstance(operand, Integer):
            value = np.asarray(np.bool_(operand.value))
            return lambda batch: lambda lanes: value
        view, negated = self.predicate(operand)

        def bind(batch: Batch) -> Callable[[Lanes | None], np.ndarray]:
            register = view.array(batch)
            if negated:
                return lambda lanes: ~take(register, lanes)
            return lambda lanes: take(register, lanes)

        return bind

    def result(self, index: int, type: ScalarType, relaxed: bool = False) -> RegisterView | None:
        return self.write(self.operands[index], type, relaxed)

    def write(
        self, operand: Operand, type: ScalarType, relaxed: bool = False
    ) -> RegisterView | None:
        """A register to write values of `type` to; wider ones are extended as the type says."""
        if isinstance(operand, Sink):
            return None
        if not isinstance(operand, Register):
            raise self.error("a register is expected")
        slot = self.names.register(operand.name)
        if slot is None:
            raise self.error(f"{operand.name} is not declared")
        self._check_width(slot, type, relaxed)
        self.writes.add(slot.number)
        if slot.bits > type.bits:
            type = TYPES[f"{'s' if type.kind == 's' else 'u'}{slot.bits}"]
        return RegisterView(slot, type.dtype)

    def elements(self, index: int) -> tuple[Operand, ...]:
        """The elements of a vector operand; a lone operand is a vector of one."""
        operand = self.operands[index]
        return operand.elements if isinstance(operand, Vector) else (operand,)

    def _check_width(self, slot: Slot, type: ScalarType, relaxed: bool) -> None:
        if slot.is_predicate != (type.kind == "p"):
            raise self.error(f"a register of this kind does not hold .{type.name}")
        if slot.bits < type.bits or (slot.bits > type.bits and not relaxed):
            raise self.error(f"a register of {slot.bits} bits where .{type.name} is expected")

    def _special(self, name: str, dtype: np.dtype) -> Source:
        from .batch import SPECIAL_REGISTERS

        if name not in SPECIAL_REGISTERS:
            raise self.error(f"{name} is not declared")
        return Special(name, dtype)

    def _integer(self, value: int, type: ScalarType) -> np.generic:
        if type.kind == "p":
            return np.bool_(value)
        if type.is_float and type.kind == "f" and type.lanes == 1:
            raise self.error(f"an integer where .{type.name} is expected")
        bits = np.asarray(value & ((1 << type.bits) - 1), dtype=TYPES[f"u{type.bits}"].dtype)
        return type.dtype.type(bits.view(type.dtype))

    def _float(self, literal: Float, type: ScalarType) -> np.generic:
        if type.kind == "f" and type.lanes == 1:
            return type.dtype.type(literal.value)
        if type.bits != literal.width:
            raise self.error(f"a float literal where .{type.name} is expected")
        return type.dtype.type(literal.bits)


def _named(operand: Operand, names: Names) -> Operand:
    """A name without % is a register where one is declared: inline assembly has such names."""
    if isinstance(operand, Symbol):
        is_register = not operand.offset and names.register(operand.name) is not None
        return Register(operand.name) if is_register else operand
    if isinstance(operand, Vector):
        return Vector(tuple(_named(element, names) for element in operand.elements))
    if isinstance(operand, Pair):
        return Pair(_named(operand.first, names), _named(operand.second, names))
    if isinstance(operand, TensorAddress):
        base = operand.base
        if isinstance(base, Symbol) and names.register(base.name) is not None:
            base = Register(base.name)
        return TensorAddress(base, tuple(_named(one, names) for one in operand.coordinates))
    if isinstance(operand, Address) and isinstance(operand.base, Symbol):
        register = names.register(operand.base.name)
        return Address(Register(operand.base.name), operand.offset) if register else operand
    return operand


def decode(instruction: Instruction, names: Names) -> Operation:
    """The operation of an instruction; PtxSyntaxError where something is unknown or left over."""
    function = INSTRUCTIONS.get(instruction.opcode)
    if function is None:
        raise PtxSyntaxError(
            f"unknown instruction {instruction.opcode}", instruction.line, instruction.text
        )
    decoder = Decoder(instruction, names)
    operation = function(decoder)
    if decoder.rest():
        raise decoder.error(f"unknown modifier .{decoder.rest()[0]}")
    operation.reads = frozenset(decoder.reads)
    operation.writes = frozenset(decoder.writes)
    return operation
