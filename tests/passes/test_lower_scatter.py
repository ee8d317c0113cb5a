"""`abq.scatter` on a GPU copies the tensor and launches kernels over the updates."""

from __future__ import annotations

import pytest
from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes.infrastructure import Unit
from facts import after

X, UPDATES, INDICES = "tensor<?x?xf32>", "tensor<?xf32>", "tensor<?x2xi64>"


@pytest.mark.parametrize(
    ("combine", "calls"),
    [
        ("replace", ["scatter_places_2_i64_claims", "scatter_claim", "scatter_replace_4"]),
        ("addf", ["scatter_places_2_i64", "scatter_addf_f32"]),
    ],
)
def test_lowering_copies_and_launches(combine: str, calls: list[str]) -> None:
    text = f"""func.func @main(%x: {X}, %i: {INDICES}, %u: {UPDATES}) -> {X} {{
      %y = "abq.scatter"(%x, %i, %u) {{combine = "{combine}"}} : ({X}, {INDICES}, {UPDATES}) -> {X}
      return %y : {X}
    }}"""
    facts = after(text, "resolve-dims", "lower-abq", unit=Unit(target=CudaTarget.named("sm_80")))
    assert len(facts("memref.copy")) == 1 and facts.calls() == calls
