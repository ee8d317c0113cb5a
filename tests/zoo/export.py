"""A PyTorch module to ONNX, by either of PyTorch's exporters. Needs torch."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

# Axis -> the name of its size.
Axes = dict[int, str]


@dataclass(frozen=True)
class Export:
    """A module, arguments to trace it with, and the names of its tensors and dynamic axes."""

    module: nn.Module
    inputs: dict[str, tuple[Tensor, Axes]]
    outputs: dict[str, Axes]
    opset: int = 18


def write(what: Export, exporter: str, path: Path) -> None:
    """Write `what` to `path` by `torchscript` (the old exporter) or `dynamo` (the new one)."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    arguments = tuple(tensor for tensor, _ in what.inputs.values())
    common = {"input_names": list(what.inputs), "output_names": list(what.outputs)}
    module = what.module.eval()
    if exporter == "torchscript":
        axes = {name: axes for name, (_, axes) in what.inputs.items()} | what.outputs
        torch.onnx.export(
            module,
            arguments,
            str(path),
            dynamo=False,
            dynamic_axes=axes,
            opset_version=min(what.opset, 20),
            **common,
        )
        return
    program = torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        dynamic_shapes=_dynamic_shapes(what),
        opset_version=what.opset,
        verbose=False,
        **common,
    )
    assert program is not None
    program.save(path, external_data=False)


def _dynamic_shapes(what: Export) -> tuple:
    """Per argument axis -> its size; a sum such as `past + seq` is left to the exporter."""
    names = {name for _, axes in what.inputs.values() for name in axes.values()}
    dims = {n: torch.export.Dim(n) if n.isidentifier() else torch.export.Dim.DYNAMIC for n in names}
    per_input = tuple(
        {axis: dims[name] for axis, name in axes.items()} for _, axes in what.inputs.values()
    )
    variadic = what.module.forward.__code__.co_flags & 0x04
    if not variadic:
        return per_input
    fixed = what.module.forward.__code__.co_argcount - 1
    return (*per_input[:fixed], per_input[fixed:])
