"""Random numbers as a function of a key and the place of an element: no state, no order of threads.

Element i has the i-th output of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom
Number Generators", OOPSLA 2014), whose state is key + (i + 1) * gamma. The key is made of the
node's seed, or of its name where it has none, and of the numbers of the iterations that it is in: a
run gives the same numbers each time, on every machine.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..registry import Node
from ..values.element_types import F32, F64, U64, ElementType
from ..values.symbolic import Dim

GAMMA = 0x9E3779B97F4A7C15


def key_of(node: Node) -> Scalar:
    """The key of a node's numbers, made before its loop."""
    b = node.b
    if node.has("seed"):
        seed = node.float("seed")
        digest = struct.pack("<d", seed)
    else:
        digest = node.name.encode()
        b.note("gives the same numbers in every run, because it has no attribute 'seed'")
    number = int.from_bytes(hashlib.sha256(digest).digest()[:8], "little")
    key = const(number, U64)
    for iteration in b.iterations:
        key = _mixed(key + (b.scalar(iteration).cast(U64) + 1) * GAMMA)
    return key


def place(b: Builder, indices: Sequence[Scalar], dims: Sequence[Dim]) -> Scalar:
    """The number of an element in row-major order, in a body over `dims`."""
    number = const(0, U64)
    for index, dim in zip(indices, dims, strict=True):
        number = number * b.scalar(dim).cast(U64) + index.cast(U64)
    return number


def bits(key: Scalar, number: Scalar) -> Scalar:
    """64 random bits."""
    return _mixed(key + (number + 1) * GAMMA)


def _mixed(z: Scalar) -> Scalar:
    z = (z ^ z.shift_right(30)) * 0xBF58476D1CE4E5B9
    z = (z ^ z.shift_right(27)) * 0x94D049BB133111EB
    return z ^ z.shift_right(31)


def uniform(random: Scalar, dtype: ElementType) -> Scalar:
    """A number in [0, 1) of f32 or f64, all multiples of 2^-24 or 2^-53."""
    digits = 53 if dtype is F64 else 24
    target = F64 if dtype is F64 else F32
    return random.shift_right(64 - digits).cast(target) * 2.0**-digits


def normal(random: Scalar, dtype: ElementType) -> Scalar:
    """A number of the standard normal distribution (Box and Muller, 1958), of f32 or f64."""
    target = F64 if dtype is F64 else F32
    low = (random & 0xFFFFFFFF).cast(target) * 2.0**-32
    high = (random.shift_right(32).cast(target) + 1.0) * 2.0**-32  # never 0
    return (high.log() * -2.0).sqrt() * (low * (2 * math.pi)).cos()
