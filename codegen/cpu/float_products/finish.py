"""How CPU kernels of products apply an epilogue to what they store."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, buffer
from abqc.codegen.epilogue import apply_epilogue
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import FLOAT, Epilogue, Read

from .tile import broadcast

Steady = list[Value | None]


def buffers_of(epilogue: Epilogue | None) -> tuple[list[str], str]:
    """The types of the buffers of an epilogue's inputs, and of the one of the result."""
    if epilogue is None:
        return [], buffer(FLOAT)
    return [buffer(element) for element in epilogue.inputs], buffer(epilogue.result)


@dataclass(frozen=True)
class Finish:
    """An epilogue and the buffers of its inputs; without one, results stay as they are."""

    b: Builder
    epilogue: Epilogue | None
    inputs: list[Value]
    lanes: int

    def steady(self, sample: Value, channel: Value, image: Value) -> Steady:
        """The inputs that are the same in all of a channel of a sample, in vectors; None for those
        that are read element by element. `image` is the number of that channel among all samples.
        """
        places: dict[Read, Value | int] = {
            "sample channel": image,
            "channel": channel,
            "sample": sample,
            "one": 0,
        }
        reads = self.epilogue.reads if self.epilogue is not None else ()
        return [
            None if read == "element" else broadcast(self.b, source, places[read], self.lanes)
            for source, read in zip(self.inputs, reads, strict=True)
        ]

    def __call__(self, value: Value, steady: Steady, at: Value, mask: Value | None) -> Value:
        """What becomes of the vector `value`, elements of the result from `at` on."""
        if self.epilogue is None:
            return value
        inputs = [
            self.b.load(source, at, self.lanes, mask) if known is None else known
            for source, known in zip(self.inputs, steady, strict=True)
        ]
        return apply_epilogue(self.epilogue, value, inputs)


@dataclass
class ConvBody:
    """The body of a convolution of floats, with the buffers that all of them have
    (direct_conv.py)."""

    b: Builder
    spec: ConvSpec
    finish: Finish
    x: Value
    w: Value
    bias: Value
    y: Value
