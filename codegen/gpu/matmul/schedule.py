"""How a matmul is cut into blocks, warps and stages: what the cost model chooses among."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["rows", "tile", "wgmma"]

PRODUCER_WARPS = 4  # of kernels by wgmma: they copy what the others multiply
STREAMED_ROWS = 8  # up to so many rows `rows` kernels stream weights as fast as memory gives them


@dataclass(frozen=True, order=True)
class Schedule:
    """One way to run one strategy's matmul.

    `rows`: CUDA cores, at most `max_rows` rows (block_m) that every thread keeps; weights are
    streamed once. `tile`: MMA over tiles of block_m x block_n, block_k at a time, `stages` of them
    in shared memory. `wgmma`: the same by warpgroups of four warps, each of which has all rows and
    64 or 128 columns; another four warps copy. `warps_m * warps_n * warps_k` warps a block; warps_k
    > 1 split K inside of the block. `split` > 1 cuts K among blocks, whose sums a second kernel
    adds in order. `persistent`: so many blocks stay and do all tiles in turns (`wgmma`); 0: a block
    for each tile. With both, blocks that stay share tiles along K, at most `split` of them one
    tile, and one of them adds (wgmma/stream_k.py). `boxes`: rows are copied by boxes of a tensor
    map, which one thread starts (`wgmma`), not 16 bytes a thread.
    """

    kind: Kind
    block_m: int
    block_n: int
    block_k: int
    warps_m: int = 1
    warps_n: int = 1
    warps_k: int = 1
    stages: int = 1
    split: int = 1
    persistent: int = 0
    boxes: bool = False

    @cached_property
    def threads(self) -> int:
        copying = PRODUCER_WARPS if self.kind == "wgmma" else 0
        return 32 * (self.warps_m * self.warps_n * self.warps_k + copying)

    @property
    def stream_k(self) -> bool:
        """Whether blocks that stay share tiles along K."""
        return self.persistent > 0 and self.split > 1

    @property
    def grid_split(self) -> int:
        """Parts of the grid, each with sums of its own that a second kernel adds; 1: none."""
        return 1 if self.persistent else self.split

    @property
    def max_rows(self) -> int | None:
        """The largest M; None: any."""
        return self.block_m if self.kind == "rows" else None

    def covers(self, rows: int | None) -> bool:
        """Whether it is for products of up to so many rows (None: any number)."""
        if self.kind == "wgmma":
            return rows is None or rows > STREAMED_ROWS
        return self.max_rows is None or (rows is not None and rows <= self.max_rows)

    @cached_property
    def name(self) -> str:
        """Part of a kernel's name."""
        text = f"{self.kind}{self.block_m}x{self.block_n}x{self.block_k}"
        text += f"_w{self.warps_m}x{self.warps_n}x{self.warps_k}"
        text += f"_s{self.stages}" if self.stages > 1 else ""
        text += f"_p{self.persistent}" if self.persistent else ""
        text += "_boxes" if self.boxes else ""
        return text + (f"_split{self.split}" if self.split > 1 else "")
