"""GemLite, kernels in Triton: with the schedules that its authors tuned on an H100 and ship.

A shape that they did not tune gets those of the shape nearest to it in size. Widths for which they
ship none are tuned here by GemLite's own short list ("fast"), which takes seconds.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

from .peer import Case, Operands, Peer, clones

TUNED = "h100.json"
MOST_ROWS = {"GEMV": 3, "GEMM_SPLITK": 64}  # beyond: GEMM, as the schedules were made for


class GemLite(Peer):
    name = "GemLite"
    files = ("gemlite.zip",)
    module = "gemlite"

    def open(self) -> None:
        module = self.imported()
        from gemlite import core, helper

        self._helper, self._core, self.version = helper, core, module.__version__
        module.load_config(str(Path(module.__file__).parent / "configs" / TUNED))

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        torch, helper = self.torch, self._helper
        bits, rows = case.bits
        groups = k // case.group if case.group else 1
        codes, scale = self.random_codes(bits, n, k), self.random_scales(n, groups).half()
        middle = 2 ** (bits - 1)
        if rows == 16:
            layer = helper.A16Wn(dtype=torch.float16).from_weights(
                codes.to(torch.uint8), scale, torch.full_like(scale, middle), bits, case.group
            )
        else:
            layer = helper.A8W8_int8_dynamic(dtype=torch.float16).from_weights(
                (codes - middle).to(torch.int8), scales=scale.float()
            )
        self._lend(layer, n, k)
        weights = clones(layer.W_q.data, copies)
        return Operands(weights, self.dense(codes - middle, scale), extra=layer)

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        """The whole forward call: quantizing the rows is part of it."""
        layer, core, m = operands.extra, self._core, x.shape[0]
        fitting = [name for name, most in MOST_ROWS.items() if m <= most]
        kind = fitting[0] if fitting else "GEMM"
        if kind == "GEMV":
            kind = core.get_default_gemv(layer.W_nbits)
        number = core.GEMLITE_MATMUL_TYPES_MAPPING[kind]
        _, *rest = layer.get_tensor_args()
        meta = layer.get_meta_args()

        def multiply(i: int) -> Any:
            return core.forward_functional(x, None, [operands.weights[i], *rest], meta, number)

        return multiply, multiply if case.bits[1] == 8 else None

    def _lend(self, layer: Any, n: int, k: int) -> None:
        """Schedules of the shape nearest to this one, where there are none for it."""
        core = self._core
        type_id = layer.input_dtype.value * 100 + layer.W_nbits
        each, group = layer.elements_per_sample, layer.group_size
        for known in core.GEMLITE_TRITON_CONFIG_CACHE.values():
            keys = {key: ast.literal_eval(key) for key in known}
            like = {
                key: shape
                for key, shape in keys.items()
                if shape[4:] == (each, type_id) and (shape[3] == group or shape[3] == shape[2])
            }
            for m in {shape[0] for shape in like.values()}:
                own = str((m, n, k, group, each, type_id))
                if own not in known:
                    near = [key for key, shape in like.items() if shape[0] == m]
                    known[own] = known[min(near, key=lambda key: _distance(like[key], n, k))]


def _distance(shape: tuple[int, ...], n: int, k: int) -> float:
    return abs(math.log(shape[1] / n)) + abs(math.log(shape[2] / k))
