"""What a run hands over to the C interface, kept and used again.

Entering a run of a small model would cost more than the run if everything were made anew: two
tables of tensors, the options, and what the outputs look like.
"""

from __future__ import annotations

from collections.abc import Sequence

from .abi import Instance
from .dlpack import DType, TensorTable


class Call:
    """Inputs, outputs and options of one run at a time."""

    def __init__(
        self, instance: Instance, input_types: Sequence[DType], output_types: Sequence[DType]
    ) -> None:
        self.inputs = TensorTable(input_types)
        self.outputs = TensorTable(output_types, managed=True)
        self._counts = len(input_types), len(output_types)
        self._options = instance.run_options()
        self._set = (0, (0, 0), 0, 0)
        # Of small outputs of the last run, whose inputs had the layouts that the table describes.
        self.shapes: list[tuple[int, ...] | None] = [None] * len(output_types)

    def run(
        self, instance: Instance, threads: int, device: tuple[int, int], stream: int, profile: int
    ) -> None:
        """`instance.run` on the tables as they are."""
        wanted = (threads, device, stream, profile)
        options = self._options
        if wanted != self._set:
            options.threads = threads
            options.device.device_type, options.device.device_id = device
            options.stream, options.profile = stream or None, profile or None
            self._set = wanted
        inputs, outputs = self._counts
        instance.run(self.inputs.address, inputs, self.outputs.address, outputs, options)
