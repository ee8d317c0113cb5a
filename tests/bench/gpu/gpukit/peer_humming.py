"""humming-kernels: Hopper's own instructions for weights of 1 to 8 bits (vLLM's successor to its
Marlin and Machete kernels), by the schedules that it chooses itself.

Its kernels are compiled when they are first used. Those that the folder of peers has as cubins are
not: `humming.json` maps the digest of a kernel's text to a file and a case to the schedule that
humming chose for this GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from .peer import Case, Operands, Peer, clones

PLAN = "humming.json"
CUBINS = "humming_cubins.tar.xz"


class Humming(Peer):
    name = "humming"
    files = ("humming.zip",)
    module = "humming"

    def open(self) -> None:
        scratch = self.scratch
        os.environ.setdefault("HUMMING_CACHE_DIR", str(scratch / "cache"))
        os.environ.setdefault("HUMMING_TMP_DIR", str(scratch / "tmp"))
        for folder in ("cache", "tmp"):
            (scratch / folder).mkdir(parents=True, exist_ok=True)
        self.version = self.imported().__version__
        path = self.folder / PLAN
        self._plan = json.loads(path.read_text()) if path.exists() else {}
        known = self._plan.get("cubins", {})
        if known:
            with tarfile.open(self.folder / CUBINS) as archive:
                archive.extractall(scratch / "cubins", filter="data")
        use_cubins(scratch / "cubins", known)

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        torch = self.torch
        bits, codes = case.bits[0], self.random_codes(case.bits[0], n, k)
        scale = self.random_scales(n, k // case.group if case.group else 1).half()
        layer = make_layer(torch, case, n, k)
        layer.load_from_tensors({"weight": packed(torch, codes, bits), "weight_scale": scale})
        layer.transform()
        dense = self.dense(codes - 2 ** (bits - 1), scale)
        return Operands(clones(layer.weight.data, copies), dense, extra=layer)

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Any, Any]:
        from humming.forward import humming_forward, may_quant_input

        layer, torch = operands.extra, self.torch
        config, (m, _) = layer.humming_config, x.shape
        tuning = self._tuning(case, layer, m)
        y = torch.empty(m, layer.shape_n, dtype=torch.float16, device=x.device)
        rows, row_scale = may_quant_input(config, x)

        def call(inputs: Any, scale: Any, weight: Any) -> Any:
            return humming_forward(
                config,
                inputs,
                weight,
                weight_scale=layer.weight_scale,
                weight_scale_2=getattr(layer, "weight_scale_2", None),
                outputs=y,
                input_scale=scale,
                locks=layer.locks,
                tuning_config=tuning,
            )

        def multiply(i: int) -> Any:
            return call(rows, row_scale, operands.weights[i])

        if row_scale is None:
            return multiply, None
        return multiply, lambda i: call(x, None, operands.weights[i])

    def _tuning(self, case: Case, layer: Any, m: int) -> str:
        """The schedule that humming chose, as the folder has it or as it chooses here."""
        key = case_key(case, layer.shape_n, layer.shape_k, m)
        stored = self._plan.get("schedules", {}).get(key)
        return json.dumps(stored or schedule(layer, m))


def make_layer(torch: Any, case: Case, n: int, k: int) -> Any:
    from humming.layer import HummingLayer

    bits, rows = case.bits
    weight = {"dtype": f"int{bits}"} | ({"group_size": case.group} if case.group else {})
    inputs = None if rows == 16 else {"dtype": f"int{rows}"}
    with torch.device("cuda"):
        return HummingLayer(n, k, weight, inputs, torch_dtype=torch.float16)


def packed(torch: Any, codes: Any, bits: int) -> Any:
    """int32 [n, k * bits / 32] of codes [n, k], the first one in the lowest bits."""
    n, k = codes.shape
    each = 32 // bits
    shifts = torch.arange(each, device=codes.device) * bits
    words = (codes.view(n, k // each, each).long() << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def case_key(case: Case, n: int, k: int, m: int) -> str:
    return f"{case.label} K={k} N={n} M={m}"


def schedule(layer: Any, m: int) -> dict[str, Any]:
    from humming.tune import get_heuristics_config

    return get_heuristics_config(layer.humming_config, shape_m=m)


def digest(code: str, expression: str | None) -> str:
    return hashlib.sha256(f"{expression}\n{code}".encode()).hexdigest()[:24]


def use_cubins(folder: Path, known: dict[str, str]) -> None:
    """Kernels whose text is known are read from `folder`; others are compiled as humming does."""
    from humming.jit.compiler import Compiler
    from humming.jit.runtime import KernelRuntime

    own = KernelRuntime._get_compiler()

    class Stored(own):  # type: ignore[misc, valid-type]
        @classmethod
        def compile(cls, code: str, *arguments: Any, **options: Any) -> str:
            name = known.get(digest(code, options.get("kernel_expr")))
            if name is not None and (folder / name).exists():
                return str(folder / name)
            return str(own.compile(code, *arguments, **options))

        @classmethod
        def signature(cls) -> str:
            return "nvcc+13.0" if known else str(own.signature())

    assert issubclass(own, Compiler)
    KernelRuntime._get_compiler = staticmethod(lambda: Stored)
