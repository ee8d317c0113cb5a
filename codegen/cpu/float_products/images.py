"""What kernels read that put zeros around images themselves: some rows of one, in a scratch.

Rows of the scratch are those that rows of outputs read, cut into phases by the stride of columns.
Rows that are outside of the image are so for all channels: where channels share a scratch, one
after the other, they are cleared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import Epilogue

from ..grid_block import Span
from .finish import ConvBody, Finish, buffers_of
from .polyphase import SHUFFLED, PhaseRow

Rows = TypeVar("Rows", int, Value)


@dataclass
class Images(ConvBody):
    """The arguments of such a kernel, as `direct_conv.py` has them."""

    groups: Value
    pitch: Value
    plane: Value
    height: Value
    width: Value

    def outside(self, first: Value, height: Value) -> tuple[Span, Span]:
        """Of the rows that `height` rows of outputs from row `first` on read, those that are above
        the image, and those below."""
        b, rows = self.b, rows_read(self.spec, height)
        above = self.spec.before[0] - first * self.spec.strides[0]
        begin = b.min(b.max(above, 0), rows)
        image_rows = self.plane // b.max(self.pitch, 1)  # no columns are no rows
        end = b.max(b.min(image_rows + above, rows), begin)
        return (b.index(0), begin), (end, rows)


@contextmanager
def images_kernel(
    name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa
) -> Iterator[tuple[Value, Images]]:
    """Add a grid function with these arguments to `module`; gives the grid index and them."""
    inputs, result = buffers_of(epilogue)
    arguments = [*[buffer("f32")] * 3, *inputs, result, *[INDEX] * 8]
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest):
        y, groups, _, _, pitch, plane, height, width, _ = rest[len(inputs) :]
        finish = Finish(b, epilogue, rest[: len(inputs)], isa.lanes(32))
        yield i, Images(b, spec, finish, x, w, bias, y, groups, pitch, plane, height, width)


@dataclass
class Scratch:
    """Columns from `column` of the outputs on, `width` of them, for rows from `first` on: what they
    read, from `to(row)` on, phases of columns being `phase` apart."""

    images: Images
    rows: Value
    to: Callable[[Value], Value]
    phase: Value | int
    first: Value
    height: Value
    column: Value
    count: Value  # of the columns of a phase

    def __post_init__(self) -> None:
        images, sx = self.images, self.images.spec.strides[1]
        self.outside = images.outside(self.first, self.height)
        before = images.spec.before[1] - self.column * sx
        self.row = PhaseRow(
            *(images.b, sx, sx, images.x, self.rows, images.pitch, before, self.count, self.phase)
        )

    def clear(self) -> None:
        """The rows that are outside of the image."""
        for rows in self.outside:
            with self.images.b.loop(*rows) as loop:
                self.row.clear(self.to(loop.i))

    def copy(self, image: Value) -> None:
        """The others, of the image of this number."""
        images, b, row = self.images, self.images.b, self.row
        (_, begin), (end, _) = self.outside
        above = images.spec.before[0] - self.first * images.spec.strides[0]
        origin = image * images.plane - above * images.pitch
        if row.stride not in SHUFFLED:
            with b.loop(begin, end) as loop:
                row.copy(origin + loop.i * images.pitch, self.to(loop.i))
            return
        # Down the rows: masks of columns serve all of them.
        with b.loop(0, self.count, row.lanes) as columns:
            inside = row.is_inside(columns.i) & (columns.i + row.lanes <= self.count)
            for those, copy in ((inside, row.copy_inside), (inside ^ 1, row.copy_edge)):
                with b.when(those), b.loop(begin, end) as loop:
                    copy(origin + loop.i * images.pitch, self.to(loop.i), columns.i)


def rows_read(spec: ConvSpec, height: Rows) -> Rows:
    """By `height` rows of outputs."""
    return (height - 1) * spec.strides[0] + (spec.reach[0] + 1)
