"""vLLM's Machete (W4A16 by wgmma), compiled from its sources as a library of PyTorch's operators:
`machete.so.xz` of the folder of peers, for the version of PyTorch that it was compiled with.
"""

from __future__ import annotations

from typing import Any

from .peer import Case, Operands, Peer, clones
from .peer_humming import packed

TILE_N, TILE_K = 128, 64  # of what it packs in one piece


class Machete(Peer):
    name = "Machete"
    files = ("machete.so.xz",)
    version = "vLLM 0.11.2"

    def open(self) -> None:
        self.torch.ops.load_library(str(self.library(self.files[0])))
        self._own = self.torch.ops.abqc_machete

    def takes(self, case: Case, m: int, n: int, k: int) -> str:
        return "" if n % TILE_N == 0 and k % TILE_K == 0 else "N or K is no multiple of its tile"

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        codes = self.random_codes(4, n, k)
        scale = self.random_scales(n, k // case.group if case.group else 1).half()
        weight = self._own.prepack(packed(self.torch, codes, 4).t())
        # A new tensor: that of one row keeps strides of 1, which bulk copies do not take.
        rows = self.torch.empty(*reversed(scale.shape), dtype=scale.dtype, device=scale.device)
        rows.copy_(scale.t())
        return Operands(clones(weight, copies), self.dense(codes - 8, scale), extra=rows)

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        group = case.group or -1

        def multiply(i: int) -> Any:
            return self._own.mm(x, operands.weights[i], operands.extra, group)

        return multiply, None
