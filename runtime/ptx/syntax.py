"""What a PTX module consists of, as the parser hands it over: nothing is resolved yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from .types import ScalarType


@dataclass(frozen=True, slots=True)
class Register:
    """`%r1`, `%p2`; also special registers such as `%tid.x`."""

    name: str


@dataclass(frozen=True, slots=True)
class Integer:
    value: int


@dataclass(frozen=True, slots=True)
class Float:
    """A literal such as 0f3F800000: its value, exactly."""

    value: float
    bits: int
    width: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable plus a constant; also the name of a label or of a function."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`; the base is absent where the address is a number."""

    base: Register | Symbol | None
    offset: int


@dataclass(frozen=True, slots=True)
class TensorAddress:
    """`[map, {c0, c1}]`: an element of a tensor."""

    base: Register | Symbol
    coordinates: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """`{a, b}`."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """`d|p`: two results."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Not:
    """`!%p`."""

    operand: Register


@dataclass(frozen=True, slots=True)
class Sink:
    """`_`: the result is not wanted."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """`(a, b)` of a call."""

    elements: tuple[Operand, ...]


Operand = (
    Register
    | Integer
    | Float
    | Symbol
    | Address
    | TensorAddress
    | Vector
    | Pair
    | Not
    | Sink
    | Arguments
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `@guard opcode.modifiers operands;`."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Not | None
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Targets:
    """`name: .branchtargets labels;`, the table of a `brx.idx`."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A declaration of a register, a parameter or memory.

    `count` is that of `%r<count>`; `shape` has the extents of an array, 0 where it is open.
    `initial` is a flat list of numbers and symbols.
    """

    space: str
    type: ScalarType
    name: str
    line: int
    vector: int = 1
    count: int | None = None
    shape: tuple[int, ...] = ()
    align: int = 0
    external: bool = False
    initial: tuple[int | Float | Symbol, ...] = ()

    @property
    def elements(self) -> int:
        total = self.vector
        for extent in self.shape:
            total *= extent
        return total

    @property
    def bytes(self) -> int:
        return self.elements * self.type.bytes

    @property
    def alignment(self) -> int:
        return self.align or self.type.bytes * self.vector


@dataclass(frozen=True, slots=True)
class Scope:
    """`{ ... }`: names declared inside are local to it."""

    items: tuple[Statement, ...]


Statement = Instruction | Label | Targets | Variable | Scope


@dataclass(frozen=True)
class Function:
    """An `.entry` or a `.func`; `body` is None where it is only declared."""

    name: str
    is_kernel: bool
    parameters: tuple[Variable, ...]
    returns: tuple[Variable, ...]
    body: Scope | None
    line: int
    bounds: dict[str, tuple[int, ...]] = field(default_factory=dict)
