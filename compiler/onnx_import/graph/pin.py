"""Pins the shapes of inputs that the user names."""

from __future__ import annotations

from collections.abc import Mapping

from abqc.errors import ModelError

from .model import Model


def pin_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Sets the shapes of inputs; a symbolic size pinned once is pinned wherever it occurs."""
    inputs = {value.name: value for value in model.shell.graph.input}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            known = ", ".join(inputs)
            raise ModelError(f"--shape names '{name}', but the model's inputs are {known}")
        if any(size < 0 for size in shape):
            raise ModelError(f"--shape {name}: {list(shape)} has a negative size")
        tensor = inputs[name].type.tensor_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            if len(dims) != len(shape):
                raise ModelError(f"--shape {name} has {len(shape)} sizes; the input {len(dims)}")
            for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
                if dim.HasField("dim_value") and dim.dim_value != size:
                    raise ModelError(
                        f"--shape {name} wants {size} on axis {axis}, which the model fixes at "
                        f"{dim.dim_value}"
                    )
                if dim.dim_param and symbols.setdefault(dim.dim_param, size) != size:
                    raise ModelError(
                        f"--shape gives '{dim.dim_param}' two sizes, "
                        f"{symbols[dim.dim_param]} and {size}"
                    )
        del tensor.shape.dim[:]
        for size in shape:
            tensor.shape.dim.add().dim_value = size
    for value in (*inputs.values(), *model.shell.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
