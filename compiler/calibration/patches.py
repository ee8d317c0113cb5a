"""What a convolution multiplies with its weight: windows of its input as rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from abqc.dialects.mlir import ir
from numpy.typing import NDArray

ROWS = 1024  # of an image; more windows of one image say little more


@dataclass(frozen=True)
class Patches:
    """The windows of an `abq.conv` without groups; sizes for each spatial axis.

    `pads` are begins, then ends.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @staticmethod
    def of(op: ir.Operation) -> Patches:
        shape = ir.RankedTensorType(op.opview.w.type).shape
        strides, dilations, pads = (
            tuple(ir.DenseI64ArrayAttr(op.attributes[name]))
            for name in ("strides", "dilations", "pads")
        )
        return Patches(tuple(shape[2:]), strides, dilations, pads)

    def rows(self, x: NDArray[Any], most: int | None = ROWS) -> NDArray[np.float32]:
        """Windows [rows, C x window] of `x` [B, C, spatial], as the weight's K runs.

        At most `most` of each image (None: all), spread over it; which ones depends on the shape
        alone.
        """
        axes = len(self.window)
        begins, ends = self.pads[:axes], self.pads[axes:]
        padded = np.pad(x, ((0, 0), (0, 0), *zip(begins, ends, strict=True)))
        reach = tuple((w - 1) * d + 1 for w, d in zip(self.window, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, reach, axis=tuple(range(2, 2 + axes))
        )
        strided = tuple(slice(None, None, stride) for stride in self.strides)
        dilated = tuple(slice(None, None, dilation) for dilation in self.dilations)
        inner: Any = (slice(None), slice(None), *strided, *dilated)
        windows = windows[inner]
        places = windows.shape[2 : 2 + axes]
        count = prod(places)
        step = 1 if most is None else max(1, -(-count // most))
        chosen = np.unravel_index(np.arange(0, count, step), places)
        outer: Any = (slice(None), slice(None), *chosen)
        rows = np.moveaxis(windows[outer], 2, 1)  # [B, rows, C, window]
        return np.ascontiguousarray(rows, np.float32).reshape(-1, x.shape[1] * prod(self.window))
