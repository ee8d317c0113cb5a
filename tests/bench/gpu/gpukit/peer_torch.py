"""PyTorch's own products of narrow weights: tinygemm (W4A16) and cuBLAS in fp8."""

from __future__ import annotations

from typing import Any

from .peer import Case, Operands, Peer, clones

TILES = 8  # of 16 rows of K that a word's neighbours hold ("inner K tiles")
LARGEST_FP8 = 448.0


class Tinygemm(Peer):
    name = "PyTorch int4"
    dtype = "bfloat16"

    def open(self) -> None:
        self.version = self.torch.__version__

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        torch = self.torch
        codes = self.random_codes(4, n, k)
        scale = self.random_scales(n, k // case.group).bfloat16()
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        weights = clones(torch._convert_weight_to_int4pack(pairs, TILES), copies)
        both = torch.stack([scale, torch.zeros_like(scale)], -1)  # zero points are added
        meta = both.transpose(0, 1).contiguous()
        return Operands(weights, self.dense(codes - 8, scale), extra=meta)

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        torch = self.torch

        def multiply(i: int) -> Any:
            weight = operands.weights[i]
            return torch._weight_int4pack_mm(x, weight, case.group, operands.extra)

        return multiply, None


class Fp8(Peer):
    """One scale a tensor; activations that are in fp8 already."""

    name = "cuBLAS fp8"

    def tolerance(self, case: Case) -> float:
        return 6e-2  # of three bits behind the point

    def open(self) -> None:
        self.version = self.torch.__version__
        self._one = self.torch.ones((), device="cuda")

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        torch = self.torch
        weight = (torch.randn(n, k, device="cuda") / 8).to(torch.float8_e4m3fn)
        return Operands(clones(weight, copies), weight.float())

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        torch = self.torch
        rows = x.to(torch.float8_e4m3fn)

        def multiply(i: int) -> Any:
            return torch._scaled_mm(
                rows,
                operands.weights[i].t(),
                scale_a=self._one,
                scale_b=self._one,
                out_dtype=torch.float16,
            )

        return multiply, None
