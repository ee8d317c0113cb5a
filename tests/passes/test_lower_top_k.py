"""`abq.top_k` on a GPU is one launch, of a kernel that the length of a line chooses."""

from __future__ import annotations

from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes.infrastructure import Unit
from facts import after

X, PLACES = "tensor<?x?xf32>", "tensor<?x?xi64>"


def test_lowering_chooses_by_the_length() -> None:
    text = f"""func.func @main(%x: {X}, %k: index) -> ({X}, {PLACES}) {{
      %v, %i = "abq.top_k"(%x, %k) {{axis = 1 : i64, largest = 1 : i64}}
          : ({X}, index) -> ({X}, {PLACES})
      return %v, %i : {X}, {PLACES}
    }}"""
    facts = after(text, "resolve-dims", "lower-abq", unit=Unit(target=CudaTarget.named("sm_80")))
    assert facts.calls() == ["top_k_f32_largest_256", "top_k_f32_largest_1024"]
