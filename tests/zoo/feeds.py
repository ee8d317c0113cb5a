"""Inputs of a model of the zoo for given sizes, read off the ONNX file's own signature."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from zoo.entry import Entry, Values

Array = NDArray[Any]
Sizes = Mapping[str, int]


def make_feeds(entry: Entry, path: Path, sizes: Sizes, seed: int = 0) -> dict[str, Array]:
    """An array for every input that is no initializer. Raises KeyError for a size not given."""
    graph = onnx.load(path, load_external_data=False).graph
    rng = np.random.default_rng(seed)
    initializers = {tensor.name for tensor in graph.initializer}
    return {
        value.name: _draw(entry, value, sizes, rng)
        for value in graph.input
        if value.name not in initializers
    }


def _draw(
    entry: Entry, value: onnx.ValueInfoProto, sizes: Sizes, rng: np.random.Generator
) -> Array:
    tensor = value.type.tensor_type
    dims = enumerate(tensor.shape.dim)
    shape = tuple(_size(value.name, axis, dim, sizes) for axis, dim in dims)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return np.asarray(_elements(_how(entry, value.name), shape, dtype, sizes, rng)).astype(dtype)


def _size(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension, sizes: Sizes) -> int:
    if f"{name}.{axis}" in sizes:
        return sizes[f"{name}.{axis}"]
    if dim.dim_param:
        return sizes[dim.dim_param] if dim.dim_param in sizes else evaluate(dim.dim_param, sizes)
    if dim.HasField("dim_value"):
        return dim.dim_value
    raise KeyError(f"{name}.{axis}")


def evaluate(expression: str, sizes: Sizes) -> int:
    """The value of a sum, difference, product or quotient of named sizes, as in `past + seq`."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right):
                a, b = value(left), value(right)
                results = {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b}
                if type(op) in results:
                    return results[type(op)]
        raise KeyError(expression)

    try:
        return value(ast.parse(expression, mode="eval").body)
    except SyntaxError:
        raise KeyError(expression) from None


def _how(entry: Entry, name: str) -> Values:
    if name in entry.values:
        return entry.values[name]
    patterns = (p for p in entry.values if fnmatchcase(name, p))
    return entry.values.get(next(patterns, ""), Values("default"))


def _elements(
    how: Values, shape: tuple[int, ...], dtype: np.dtype, sizes: Sizes, rng: np.random.Generator
) -> Array:
    match how.kind:
        case "default":
            return rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        case "ids":
            return rng.integers(int(how.low), int(how.high), shape)
        case "mask":
            return _mask(shape)
        case "positions":
            return np.broadcast_to(np.arange(shape[-1]) + sizes.get("past", 0), shape)
        case "scaled":
            return rng.standard_normal(shape) * how.high
        case "constant":
            return np.full(shape, how.high)
        case "lengths":
            return np.linspace(sizes[how.of], sizes[how.of] // 2, shape[0])
        case "page":
            return _page(shape, rng)
    raise ValueError(f"there is no kind of values '{how.kind}'")


def _mask(shape: tuple[int, ...]) -> Array:
    """Ones; the end of the last row is padding where there are several rows."""
    mask = np.ones(shape)
    if shape[0] > 1:
        mask[-1, ..., (shape[-1] + 1) // 2 :] = 0
    return mask


def _page(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """White with lines of dark strokes; on noise a detector of text answers zero everywhere."""
    page = np.ones(shape)
    height, width = shape[-2:]
    margin = min(14, width // 4)
    for top in range(height // 4, height - height // 8, max(height // 3, 24)):
        strokes = rng.random((shape[0], 1, 1, width - 2 * margin)) < 0.5
        page[..., top : top + 14, margin : width - margin] -= 1.8 * strokes
    return page
