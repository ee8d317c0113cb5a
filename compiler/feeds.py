"""Inputs for models whose data the user did not give: shapes by name, values by type and name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
from abqc.errors import InputError
from abqc.runtime.element_types import by_name, is_float, numpy_dtype
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

DEFAULT_VOCABULARY = 1000  # ids stay below this where the size of the vocabulary is unknown


class Spec(Protocol):
    """An input: `shape` has None or a name where a size is dynamic."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...


def resolve_shapes(specs: Iterable[Spec], given: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """A shape for every input.

    `given` maps names, or patterns such as `past_*`, to shapes. Sizes with a name take the value
    that the name has in a given input, `past + seq` included; nameless ones that of a given input
    of the same rank, type and axis. What is left of a cache, an input named `past...`, is empty,
    for the batch of the first given input.
    Raises InputError for what stays open or does not fit.
    """
    inputs = list(specs)
    unmatched = [p for p in given if not any(fnmatchcase(s.name, p) for s in inputs)]
    if unmatched:
        names = ", ".join(s.name for s in inputs)
        raise InputError(f"--shape {unmatched[0]} matches no input", hint=f"they are {names}")
    symbols: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for spec in inputs:
        pattern = next((p for p in given if fnmatchcase(spec.name, p)), None)
        if pattern is not None:
            shapes[spec.name] = _fit(spec, tuple(given[pattern]), symbols)
    for spec in inputs:
        if _is_cache(spec) and spec.name not in shapes:
            for dim in spec.shape[1:]:
                if isinstance(dim, str) and dim.isidentifier():
                    symbols.setdefault(dim, 0)
    chosen = [(s, shapes[s.name]) for s in inputs if s.name in shapes]
    for spec in inputs:
        if spec.name not in shapes:
            shapes[spec.name] = _complete(spec, symbols, chosen)
    return shapes


def _fit(spec: Spec, shape: Shape, symbols: dict[str, int]) -> Shape:
    if len(shape) != len(spec.shape):
        raise InputError(
            f"--shape gives '{spec.name}' {len(shape)} sizes, the input has {len(spec.shape)}"
        )
    for dim, size in zip(spec.shape, shape, strict=True):
        if isinstance(dim, int) and dim != size:
            raise InputError(f"--shape gives '{spec.name}' {size} where the model fixes {dim}")
        if isinstance(dim, str):
            symbols.setdefault(dim, size)
    return shape


def _complete(spec: Spec, symbols: Mapping[str, int], chosen: list[tuple[Spec, Shape]]) -> Shape:
    alike = next(
        (shape for s, shape in chosen if s.dtype == spec.dtype and len(shape) == len(spec.shape)),
        None,
    )
    sizes: list[int] = []
    for axis, dim in enumerate(spec.shape):
        size = dim if isinstance(dim, int) else _sum_of_symbols(dim, symbols)
        if size is None and alike is not None:
            size = alike[axis]
        if size is None and _is_cache(spec) and chosen:
            size = 0 if axis else chosen[0][1][0]
        if size is None:
            raise InputError(
                f"input '{spec.name}' has a dynamic size on axis {axis}",
                hint=f"give it with --shape {spec.name}={'x'.join('N' for _ in spec.shape)}",
            )
        sizes.append(size)
    return tuple(sizes)


def _sum_of_symbols(dim: str | None, symbols: Mapping[str, int]) -> int | None:
    """The value of `batch` or `past + seq`; None where a term is unknown."""
    if not dim:
        return None
    terms = [int(t) if t.isdigit() else symbols.get(t) for t in map(str.strip, dim.split("+"))]
    return None if None in terms else sum(t for t in terms if t is not None)


def make_feeds(
    specs: Iterable[Spec],
    shapes: Mapping[str, Shape],
    *,
    vocabulary: int | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs: masks of ones, positions counted on from the cache, ids in the vocabulary."""
    rng = np.random.default_rng(seed)
    inputs = list(specs)
    limit = vocabulary or DEFAULT_VOCABULARY
    longest = max((shapes[s.name][-1] for s in inputs if _is_mask(s) and shapes[s.name]), default=0)
    return {s.name: _values(s, shapes[s.name], limit, longest, rng) for s in inputs}


def _is_cache(spec: Spec) -> bool:
    return spec.name.startswith("past")


def _is_mask(spec: Spec) -> bool:
    return "mask" in spec.name.lower()


def _values(
    spec: Spec, shape: Shape, vocabulary: int, longest: int, rng: np.random.Generator
) -> Array:
    type_, dtype = by_name(spec.dtype), numpy_dtype(spec.dtype)
    name = spec.name.lower()
    if is_float(spec.dtype) and dtype == type_.storage and type_.codes:
        raise InputError(
            f"no values of type {spec.dtype} can be made for input '{spec.name}'",
            hint="install ml_dtypes: pip install ml_dtypes",
        )
    if _is_mask(spec):
        return np.ones(shape, dtype)
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(dtype)
    if is_float(spec.dtype):
        return rng.standard_normal(shape).astype(dtype)
    if "position" in name and shape:
        begin = max(longest - shape[-1], 0)
        return np.broadcast_to(np.arange(begin, begin + shape[-1]), shape).astype(dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    high = min(vocabulary, type_.largest_integer)
    return rng.integers(0, high, shape).astype(dtype)
