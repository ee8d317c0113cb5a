"""Which thread holds which elements of a tile: layouts of registers."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout, LayoutError, unfold


@dataclass(frozen=True)
class ThreadValue:
    """The elements of a tile by (thread, value).

    `layout` has two modes, threads and values (the elements in a thread's registers, in order);
    its offsets are indices into `tile`, whose first axis runs fastest.
    """

    tile: tuple[int, ...]
    layout: Layout

    def __post_init__(self) -> None:
        if self.layout.rank != 2:
            raise LayoutError(f"{self.layout} has no modes (threads, values)")

    @property
    def threads(self) -> int:
        return self.layout[0].size

    @property
    def values(self) -> int:
        """Elements a thread holds."""
        return self.layout[1].size

    def __call__(self, thread: int, value: int) -> tuple[int, ...]:
        """The coordinate of an element."""
        coordinate = unfold(self.layout(thread, value), self.tile)
        assert isinstance(coordinate, tuple)
        return coordinate  # type: ignore[return-value]


def copy_pieces(rows: int, pieces_per_row: int, threads: int) -> ThreadValue:
    """How `threads` copy a tile of rows of 16-byte pieces: neighbours take neighbouring pieces.

    The tile is (pieces_per_row, rows). Where `threads` does not divide the number of pieces, the
    last turn's excess threads get indices beyond the tile, which they have to skip.
    """
    turns = -(-rows * pieces_per_row // threads)
    return ThreadValue((pieces_per_row, rows), Layout((threads, turns), (1, threads)))
