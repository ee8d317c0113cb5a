"""`abq.top_k` on a GPU is one launch, of a kernel that the length of a line chooses."""

from __future__ import annotations

from types import SimpleNamespace

from abqc.codegen.gpu.top_k import top_k_kernels
from abqc.codegen.strategy import Variant
from abqc.passes.infrastructure import Unit
from facts import after

X, PLACES = "tensor<?x?xf32>", "tensor<?x?xi64>"


class _Target:
    objects = SimpleNamespace(on_device=True)

    def top_k(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        return top_k_kernels(element, largest=largest)


def test_lowering_chooses_by_the_length() -> None:
    text = f"""func.func @main(%x: {X}, %k: index) -> ({X}, {PLACES}) {{
      %v, %i = "abq.top_k"(%x, %k) {{axis = 1 : i64, largest = 1 : i64}}
          : ({X}, index) -> ({X}, {PLACES})
      return %v, %i : {X}, {PLACES}
    }}"""
    facts = after(text, "resolve-dims", "lower-abq", unit=Unit(target=_Target()))
    assert facts.calls() == ["top_k_f32_largest_256", "top_k_f32_largest_1024"]
