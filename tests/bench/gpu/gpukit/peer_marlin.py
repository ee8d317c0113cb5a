"""Marlin (W4A16) and the W4A8 kernel of its family (QQQ), compiled from their authors' sources
with a plain C entry point each: `libmarlin.so.xz` and `libqqq.so.xz` of the folder of peers.

Both take weights of 4 bits in the order of the operands of mma.sync: of every 16 rows of K and 64
columns, 32 lanes have 4 x 2 x 4 codes each, eight of a word. The functions here put them there.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_void_p
from typing import Any

from .peer import Case, Operands, Peer, clones

MAX_PARALLEL = 16  # blocks of 64 rows that one launch takes
TILE_N, TILE_K = 256, 128  # what n and k are multiples of


class _FromLibrary(Peer):
    symbol = ""

    def open(self) -> None:
        library = ctypes.CDLL(str(self.library(self.files[0])))
        self.function = getattr(library, self.symbol)
        self.function.restype = c_int

    def takes(self, case: Case, m: int, n: int, k: int) -> str:
        return "" if n % TILE_N == 0 and k % TILE_K == 0 else "N or K is no multiple of its tile"

    def call(self, *arguments: Any) -> None:
        """Launch on PyTorch's current stream; tensors are passed by their addresses."""
        values = [
            a if isinstance(a, int) else c_void_p(None if a is None else a.data_ptr())
            for a in arguments
        ]
        stream = c_void_p(self.torch.cuda.current_stream().cuda_stream)
        status = self.function(*values, 0, stream, MAX_PARALLEL)
        if status:
            raise RuntimeError(f"{self.symbol} returned {status}")


class Marlin(_FromLibrary):
    name = "Marlin"
    files = ("libmarlin.so.xz",)
    symbol = "peer_marlin"
    version = "1.0"

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        scale = self.random_scales(n, k // case.group if case.group else 1).half()
        space = self.torch.zeros(n // 128 * MAX_PARALLEL, dtype=self.torch.int32, device="cuda")
        extra = (scales_in_order(scale.t().contiguous(), bool(case.group)), space)
        codes = self.random_codes(4, n, k)
        words = codes_in_order(self.torch, codes, FLOAT_ROWS, PAIRS)
        return Operands(clones(words, copies), self.dense(codes - 8, scale), extra)

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        (scale, space), (m, k) = operands.extra, x.shape
        n = scale.shape[1]
        y = self.torch.empty(m, n, dtype=self.torch.float16, device=x.device)
        group = case.group or -1

        def multiply(i: int) -> Any:
            self.call(x, operands.weights[i], y, scale, m, n, k, space, group)
            return y

        return multiply, None


class Qqq(_FromLibrary):
    """The rows are quantized by PyTorch's own operators, as the project's module does."""

    name = "Marlin (QQQ)"
    files = ("libqqq.so.xz",)
    symbol = "peer_qqq"
    version = "gptqmodel 4.0.0"

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        torch = self.torch
        space = torch.zeros(n // 128 * MAX_PARALLEL, dtype=torch.int32, device="cuda")
        sums = torch.zeros(MAX_PARALLEL * 64, n, dtype=torch.int32, device="cuda")
        column = self.random_scales(n, 1)
        if case.group:  # multiples of the scale of a column that keep a code within 8 bits
            group = torch.randint(4, 16, (n, k // case.group), device="cuda").half()
            scale = column * group.float()
        else:
            group, scale = None, column
        orders = (
            scales_in_order((column if case.group else column / 16).t().contiguous(), False),
            None if group is None else scales_in_order(group.t().contiguous(), True),
        )
        extra = (*orders, space, sums)
        codes = self.random_codes(4, n, k)
        if case.group:
            words = codes_in_order(torch, codes, INTEGER_ROWS, PAIRS)
        else:
            words = codes_in_order(torch, (codes - 8) & 15, INTEGER_ROWS, HALVES)
        return Operands(clones(words, copies), self.dense(codes - 8, scale), extra)

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        torch = self.torch
        (column, group, space, sums), (m, k) = operands.extra, x.shape
        n = column.shape[1]
        y = torch.empty(m, n, dtype=torch.float16, device=x.device)

        def quantize() -> tuple[Any, Any]:
            scale = x.abs().amax(dim=-1, keepdim=True).div(127.0).float()
            return (x / scale).round().clamp(-128, 127).to(torch.int8), scale

        def product(i: int, rows: Any, scale: Any) -> Any:
            weight, size = operands.weights[i], case.group or -1
            self.call(rows, weight, sums, y, scale, column, group, m, n, k, space, size)
            return y

        rows, scale = quantize()
        return lambda i: product(i, rows, scale), lambda i: product(i, *quantize())


# Rows of K that a lane has of a tile of 16, behind its first one; the order of codes in a word.
FLOAT_ROWS = ((0, 1, 8, 9), 2)
INTEGER_ROWS = ((0, 1, 2, 3), 4)
PAIRS = (0, 2, 4, 6, 1, 3, 5, 7)
HALVES = (4, 0, 5, 1, 6, 2, 7, 3)


def codes_in_order(torch: Any, codes: Any, rows: Any, word: tuple[int, ...]) -> Any:
    """int32 [k / 16, 2 n] of codes [n, k] of 4 bits.

    A lane's 8 codes of 16 columns are those of `rows` in its column, then 8 columns further; its
    first row is (lane mod 4) times the step of `rows`, its column lane / 4.
    """
    n, k = codes.shape
    behind, step = rows
    lane = torch.arange(32)
    row = (lane % 4 * step)[:, None, None] + torch.tensor(behind)  # [lane, 1, 4]
    column = (lane // 4)[:, None, None] + torch.tensor([[0], [8]])  # [lane, 2, 1]
    inside = (16 * row + column).reshape(32, 1, 8)  # of a tile [16 of k, 16 of n]
    order = (inside + 256 * torch.arange(4)[:, None])[..., list(word)].reshape(-1)
    tiles = codes.t().reshape(k // 16, 16, n // 16, 16).permute(0, 2, 1, 3)
    lanes = tiles.reshape(k // 16, n // 64, 1024)[..., order.to(codes.device)]
    shifts = torch.arange(8, device=codes.device) * 4
    words = (lanes.reshape(k // 16, 2 * n, 8).long() << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def scales_in_order(scale: Any, grouped: bool) -> Any:
    """Scales [groups, n] as the lanes read them: of the accumulators' columns where there is one a
    column, else of the weights'."""
    if grouped:
        order = [i + 8 * j for i in range(8) for j in range(8)]
    else:
        order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    return scale.reshape(-1, len(order))[:, order].reshape(scale.shape).contiguous()
