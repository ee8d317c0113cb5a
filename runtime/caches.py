"""Quantized key/value caches of compiled models: from floats to their bytes, and back.

A manifest lists under `caches` for each its input and output, the format
(`dialects/cache_formats.py`), the elements of a row and their type in the model, and the order of
each head's channels where these are sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from abqc.dialects.cache_formats import parse_cache_format

from ..errors import InputError
from .element_types import by_name, numpy_dtype
from .tensor_spec import TensorSpec


def float_signature(manifest: Mapping[str, Any], specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Inputs or outputs as the model has them, its quantized caches as floats."""
    caches = _by_name(manifest)
    return [
        replace(
            spec,
            dtype=caches[spec.name]["float"],
            shape=(*spec.shape[:-1], caches[spec.name]["columns"]),
        )
        if spec.name in caches
        else spec
        for spec in specs
    ]


def encode_caches(manifest: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` by input or output, those of floats encoded where the model has quantized caches."""
    result = dict(arrays)
    for name, cache in _by_name(manifest).items():
        if name in result and np.asarray(result[name]).dtype != np.uint8:
            _float_dtype(cache)
            floats = _in_order(np.asarray(result[name]), cache)
            result[name] = parse_cache_format(cache["format"]).encode(floats)
    return result


def decode_caches(manifest: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """`arrays` by input or output, quantized caches as floats of the model's type."""
    result = dict(arrays)
    for name, cache in _by_name(manifest).items():
        if name in result:
            dtype, format = _float_dtype(cache), parse_cache_format(cache["format"])
            values = format.decode(np.asarray(result[name]), cache["columns"])
            result[name] = _in_order(values, cache, back=True).astype(dtype)
    return result


def _by_name(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    caches = manifest.get("caches", [])
    return {cache[role]: cache for cache in caches for role in ("input", "output")}


def _float_dtype(cache: Mapping[str, Any]) -> np.dtype:
    """Numpy's type of a cache's elements; InputError where numpy has none."""
    type_, dtype = by_name(cache["float"]), numpy_dtype(cache["float"])
    if dtype == type_.storage and type_.codes:
        raise InputError(
            f"numpy has no type for the {cache['float']} of the cache '{cache['input']}'",
            hint="install ml_dtypes: pip install ml_dtypes",
        )
    return dtype


def _in_order(x: np.ndarray, cache: Mapping[str, Any], *, back: bool = False) -> np.ndarray:
    """The channels of each head as they are stored; `back`: those stored as the model has them."""
    if "order" not in cache:
        return x
    order = np.array(cache["order"])
    if back:
        order = np.argsort(order, axis=1)
    axes = [axis for axis in range(x.ndim - 1) if axis != cache["heads_axis"]]
    return np.take_along_axis(x, np.expand_dims(order, axes), axis=-1)
