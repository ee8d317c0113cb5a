"""Arithmetic with carry (PTX ISA, "Extended-Precision Integer Arithmetic Instructions").

The condition code is one bit per lane, which `.cc` writes and addc, subc and madc read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..batch import Batch
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..lanes import Lanes, put, take
from ..types import ScalarType
from .integers import high_product

Carry = tuple[np.ndarray, np.ndarray]


def add_sub_carry(i: Decoder) -> Operation:
    """`add.cc`, `sub.cc`: the carry (the borrow) is written."""
    return _with_carry(i, _add if i.opcode == "add" else _subtract, reads=False)


@instruction("addc", "subc")
def add_sub_with_carry(i: Decoder) -> Operation:
    return _with_carry(i, _add if i.opcode == "addc" else _subtract, reads=True)


def mad_carry(i: Decoder) -> Operation:
    return _mad(i, reads=False)


@instruction("madc")
def mad_with_carry(i: Decoder) -> Operation:
    return _mad(i, reads=True)


def _add(a: np.ndarray, b: np.ndarray, carry: np.ndarray) -> Carry:
    partial = a + b
    total = partial + carry
    return total, (partial < a) | (total < partial)


def _subtract(a: np.ndarray, b: np.ndarray, borrow: np.ndarray) -> Carry:
    partial = a - b
    return partial - borrow, (a < b) | (partial < borrow)


def _with_carry(i: Decoder, function: Callable[..., Carry], reads: bool) -> Operation:
    writes = i.flag("cc")
    type = i.type()
    i.arity(3)
    sources = [i.source(k, _unsigned(type)) for k in (1, 2)]
    return _effect(i, function, sources, type, reads, writes)


def _mad(i: Decoder, reads: bool) -> Operation:
    """The product's half, then a sum with carry."""
    part = i.need("lo", "hi")
    writes = i.flag("cc")
    type = i.type()
    i.arity(4)
    product = np.multiply if part == "lo" else high_product(type)
    unsigned = _unsigned(type).dtype

    def multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray, carry: np.ndarray) -> Carry:
        return _add(product(a, b).astype(unsigned), c, carry)

    sources = [i.source(1, type), i.source(2, type), i.source(3, _unsigned(type))]
    return _effect(i, multiply_add, sources, type, reads, writes)


def _unsigned(type: ScalarType) -> ScalarType:
    from ..types import TYPES

    return TYPES[f"u{type.bits}"]


def _effect(
    i: Decoder,
    function: Callable[..., Carry],
    sources: list,
    type: ScalarType,
    reads: bool,
    writes: bool,
) -> Operation:
    result = i.result(0, _unsigned(type))
    dtype = _unsigned(type).dtype

    def bind(batch: Batch) -> Run:
        arrays = [source.array(batch) for source in sources]
        out = result.array(batch) if result else None
        carries = batch.carry
        zero = np.zeros((), dtype)

        def run(lanes: Lanes | None) -> None:
            carry = take(carries, lanes).astype(dtype) if reads else zero
            value, carried = function(*(take(array, lanes) for array in arrays), carry)
            if out is not None:
                put(out, lanes, value)
            if writes:
                put(carries, lanes, carried)

        return run

    return Effect(bind)
