"""What a block gets, and what it should make of that, batch by batch. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from abqc.compiler.calibration.dataflow import ValueId
from abqc.compiler.calibration.runs import Stream
from abqc.compiler.calibration.segments import SegmentModule, value_name
from numpy.typing import NDArray

from .blocks import Block
from .evaluate import Evaluator
from .float_block import FloatBlock

Array = NDArray[Any]
Tensor = Any


ROWS = 4096  # of the attention maps of a batch, which are many; about as many count


@dataclass(frozen=True)
class Sample:
    """One batch: what the quantized model so far gives the block, by name, and the rows that count.

    `wanted` are the float model's outputs and attention maps, `own` the outputs of the float block
    on what it is given here; rows are those of outputs, [R, C], and of maps, [R, keys].
    """

    feeds: dict[str, Tensor]
    wanted: dict[ValueId, Tensor]
    own: dict[ValueId, Tensor]
    mask: Array | None

    def rows(self, value: Tensor) -> Tensor:
        """The rows [R, C] of an output [.., C], or of attention maps [B, heads, queries, keys],
        without those that the mask hides."""
        flat, seen = value.reshape(-1, value.shape[-1]), self.mask
        if seen is not None and value.ndim == 4 and _of_queries(seen, value):
            seen = np.broadcast_to(seen[:, None], value.shape[:3])
        if seen is not None and seen.size == len(flat):
            flat = flat[torch.from_numpy(seen.reshape(-1) != 0)]
        # An odd step, so that rows are of all heads and queries.
        return flat[:: max(1, len(flat) // ROWS) | 1] if value.ndim == 4 else flat


def _of_queries(mask: Array, maps: Tensor) -> bool:
    """Whether `mask` [batch, tokens] is that of the queries of `maps` [B, heads, queries, keys]."""
    return mask.ndim == 2 and (maps.shape[0], maps.shape[2]) == mask.shape


class Samples:
    """The batches `chosen` of a block. What the float block makes of them is kept in files."""

    def __init__(
        self,
        block: Block,
        part: SegmentModule,
        streams: tuple[Stream, Stream],
        masks: Sequence[Array | None],
        chosen: Sequence[int],
    ) -> None:
        self._block, self._inputs = block, [spec.name for spec in part.inputs]
        self._exact, self._rounded = streams
        self._masks, self._chosen = masks, chosen
        names = (f"{kind} of block {block.begin}" for kind in ("wanted", "own"))
        self._wanted, self._own = map(self._exact.beside, names)

    def __len__(self) -> int:
        return len(self._chosen)

    def prepare(self, run: Evaluator, floats: FloatBlock) -> None:
        """`run` the float block on what both variants of the model give it; `floats`, its products,
        listen to what they read of the quantized one."""
        for floats.listens, source, kept in (
            (False, self._exact, self._wanted),
            (True, self._rounded, self._own),
        ):
            for batch in self._chosen:
                floats.mask = self._masks[batch]
                with torch.no_grad():
                    made = run(self._feeds(source, batch))
                for id_ in (*self._block.outputs, *self._block.attention):
                    kept.keep(id_, batch, made[value_name(id_)].numpy())

    def __getitem__(self, number: int) -> Sample:
        batch = self._chosen[number]
        block = self._block
        return Sample(
            self._feeds(self._rounded, batch),
            {
                id_: _tensor(self._wanted.value(value_name(id_), batch))
                for id_ in (*block.outputs, *block.attention)
            },
            {id_: _tensor(self._own.value(value_name(id_), batch)) for id_ in block.outputs},
            self._masks[batch],
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def close(self) -> None:
        """Remove the files."""
        for id_ in (*self._block.outputs, *self._block.attention):
            self._wanted.forget(id_)
            self._own.forget(id_)

    def _feeds(self, source: Stream, batch: int) -> dict[str, Tensor]:
        return {name: _tensor(source.value(name, batch)) for name in self._inputs}


def _tensor(array: Array) -> Tensor:
    """A copy: what is in files is mapped. 16-bit floats are computed with in f32."""
    is_float = array.dtype.kind not in "iub"
    return torch.from_numpy(np.array(array, np.float32 if is_float else array.dtype))
