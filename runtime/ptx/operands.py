"""Operands, resolved: what an operation reads and writes, before it is known on how many lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from .batch import Batch


@dataclass(frozen=True)
class Slot:
    """A register: its number in the register file, and its width (predicates have 8 bits)."""

    number: int
    bits: int
    is_predicate: bool = False


class Source(Protocol):
    """Something that an operation reads."""

    def array(self, batch: Batch) -> np.ndarray:
        """A value for each lane, always up to date; of no dimension if all lanes have the same."""


@dataclass(frozen=True)
class RegisterView:
    """A register read or written as values of `dtype`; the low bytes where `dtype` is narrower."""

    slot: Slot
    dtype: np.dtype

    def array(self, batch: Batch) -> np.ndarray:
        view = batch.registers[self.slot.number].view(self.dtype)
        ratio = self.slot.bits // (8 * self.dtype.itemsize)
        return view[::ratio] if ratio > 1 else view


@dataclass(frozen=True)
class Constant:
    value: np.generic

    def array(self, batch: Batch) -> np.ndarray:
        return np.asarray(self.value)


@dataclass(frozen=True)
class Special:
    """A special register such as `%tid.x`."""

    name: str
    dtype: np.dtype

    def array(self, batch: Batch) -> np.ndarray:
        return batch.special(self.name, self.dtype)


@dataclass(frozen=True)
class AddressOf:
    """The address of a variable, which is known when the kernel is launched."""

    space: str
    name: str
    offset: int
    dtype: np.dtype

    def array(self, batch: Batch) -> np.ndarray:
        address = self.offset + batch.address_of(self.space, self.name)
        return np.asarray(self.dtype.type(address & int(np.iinfo(self.dtype).max)))


@dataclass(frozen=True)
class Place:
    """Where a variable lies: its space, its offset there (global ones are found by name)."""

    space: str
    name: str
    offset: int
    bytes: int


class Names(Protocol):
    """What the names mean at one place of a kernel."""

    def register(self, name: str) -> Slot | None: ...

    def place(self, name: str) -> Place | None: ...

    def label(self, name: str) -> str: ...

    def targets(self, name: str) -> tuple[str, ...]: ...
