"""Constants that leave the graph: their symbols, and what the weight store gets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from abqc.dialects.weight_store import WeightStore

from ..result import NodeInfo
from .constants import Constant
from .element_types import F32, ElementType, element_type
from .quantized import as_codes
from .ternary import as_ternary

Identity = tuple[object, ...]  # of an array
Key = tuple[Identity, tuple[int, ...], str]  # the array, the order of its axes, its type inside


def _digest(part: Constant | None) -> bytes:
    if part is None:
        return b""
    return hashlib.sha256(repr(part.shape).encode() + part.load().tobytes()).digest()


class Weights:
    """Gives each array one symbol, however often and under whatever names it is used.

    With `keep_codes`, weights of matmuls, convolutions and tables that the model holds as integers
    and scales are quantized tensors of the store, else what they mean in f32.
    """

    def __init__(self, directory: Path, *, keep_codes: bool) -> None:
        self.store = WeightStore(directory)
        self.nodes: list[NodeInfo] = []
        self._keep_codes = keep_codes
        self._symbols: dict[Key, str] = {}
        self._products: dict[Key, Constant] = {}
        self._kept: list[Constant] = []  # ids are of objects that live

    def plain(self, constant: Constant, dtype: ElementType) -> str:
        """The symbol of a constant that is read as it is, of the type that it has inside."""
        return self._symbol(constant, dtype.inside_dtype, with_codes=False)

    def of_product(self, constant: Constant) -> Constant:
        """The weight N x K of a matmul, which knows its codes where its floats are ternary."""
        if not self._keep_codes or constant.quantized is not None:
            return constant
        key = self._key(constant, "")
        if key not in self._products:
            self._kept.append(constant)
            self._products[key] = as_ternary(constant) or constant
        return self._products[key]

    def of_node(
        self, constant: Constant, *, node: str, op_type: str, kind: str
    ) -> tuple[str, ElementType]:
        """The symbol of the float weight of a node and the type it is stored in; `kind` is
        "matmul", "conv" or "gather".

        That is the model's type of 16 bits, or what the model casts to f32, else f32. Weights that
        are kept as codes are f32 to whoever does not ask for the codes.
        """
        as_f32 = self._keep_codes and constant.quantized is not None
        dtype = element_type(constant.widened_from or constant.elem_type)
        if as_f32 or dtype is None or not dtype.is_half:
            dtype = F32
        symbol = self._symbol(constant, dtype.stored_dtype, with_codes=self._keep_codes)
        info = NodeInfo(node, op_type, kind, symbol, constant.shape)
        if info not in self.nodes:  # bodies of loops are lowered more than once
            self.nodes.append(info)
        return symbol, dtype

    def _symbol(self, constant: Constant, dtype: np.dtype, *, with_codes: bool) -> str:
        codes = with_codes and constant.quantized is not None
        key = self._key(constant, f"{dtype.name}{' codes' if codes else ''}")
        if key in self._symbols:
            return self._symbols[key]
        self._kept.append(constant)
        root = constant.base or constant
        symbol = self._fresh(constant.name or root.name or "constant", bool(constant.permutation))
        self._symbols[key] = symbol
        self._add(symbol, constant, dtype, codes)
        return symbol

    def _key(self, constant: Constant, label: str) -> Key:
        # A permutation that moves only axes of size 1 changes nothing, but is a key of its own.
        order = (*constant.permutation, -1, *constant.shape)
        return self._identity(constant.base or constant), order, label

    def _identity(self, root: Constant) -> Identity:
        """Equal for constants that are read from one array.

        Each node that decodes a weight makes a constant of its own: these are equal if the codes
        are one array, and the scales and zero points have the same numbers.
        """
        source = root.quantized
        if source is None:
            return (id(self._origin(root)),)
        codes = source.codes.base or source.codes
        parts = [_digest(part) for part in (source.scale, source.zero)]
        order = (*source.codes.permutation, -1, *codes.shape)
        return (id(self._origin(codes)), order, *parts, source.block)

    def _origin(self, constant: Constant) -> Constant:
        while constant.origin is not None:
            constant = constant.origin
        self._kept.append(constant)
        return constant

    def _fresh(self, name: str, permuted: bool) -> str:
        """A symbol that no other array has, whatever names the model gives."""
        wanted = f"{name}^T" if permuted else name
        symbol, number = wanted, 1
        while symbol in self.store:
            number += 1
            symbol = f"{wanted}#{number}"
        return symbol

    def _add(self, symbol: str, constant: Constant, dtype: np.dtype, codes: bool) -> None:
        found = as_codes(constant) if codes else None
        if found is not None:
            assert constant.quantized is not None
            self.store.add_quantized(
                symbol, found.codes, found.scale, found.zero, found.scheme,
                shape=constant.shape, from_floats=constant.quantized.found,
            )  # fmt: skip
            return
        load = constant.load

        def values() -> np.ndarray:
            array = load()
            return array if array.dtype == dtype else array.astype(dtype)

        self.store.add_lazy(symbol, constant.shape, dtype, values)
