"""Runs of a model whose tensors mostly stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from .abi import Instance
from .call import Call, Signature
from .device_array import Borrower
from .dlpack import CPU, expressible


class Bound:
    """A model with inputs and outputs that are the same tensors in every run (`Model.bind`): they
    are checked and described once, and a run passes over the others alone.

    For one thread at a time.
    """

    def __init__(
        self,
        instance: Instance,
        signature: Signature,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> None:
        self._call = call = Call(instance, signature)
        in_names = [spec.name for spec in signature.inputs]
        out_names = [spec.name for spec in signature.outputs]
        buffers = [outputs.get(name) for name in out_names]
        bound = [(i, inputs[name]) for i, name in enumerate(in_names) if name in inputs]
        for i, value in bound:
            if isinstance(value, np.ndarray) and expressible(value) is not value:
                raise InputError(
                    f"input '{in_names[i]}' has strides of partial elements: runs would read a copy"
                )
        borrower = Borrower(0)
        kept = call.set_inputs(bound, borrower)
        kept += call.set_outputs(buffers, borrower)
        self._kept = [*kept, bound, buffers]
        self._inputs = [(i, name) for i, name in enumerate(in_names) if name not in inputs]
        self._names = {name for _, name in self._inputs}
        self._outputs = [(i, name) for i, name in enumerate(out_names) if buffers[i] is None]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model on the other inputs, by name; its other outputs, which it allocates, by
        name. InputError names the tensor that is wrong."""
        if inputs.keys() != self._names:
            wrong = ", ".join(sorted(inputs.keys() ^ self._names))
            raise InputError(f"inputs that are missing, unknown or bound already: {wrong}")
        call, borrower = self._call, Borrower(0)
        kept = call.set_inputs([(i, inputs[name]) for i, name in self._inputs], borrower)
        call.clear_outputs(i for i, _ in self._outputs)
        call.run(0, (0, 0), 0, 0)
        del kept
        return {name: call.allocated(i, CPU, 0) for i, name in self._outputs}
