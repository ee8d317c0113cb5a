"""Norms without a kernel become loops, which fuse-norm would recognize again."""

from __future__ import annotations

import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.passes.infrastructure import Unit
from facts import after

X, VECTOR = "tensor<?x?x96xf32>", "tensor<96xf32>"
TIDY = "func.func(canonicalize,cse)"


def norm(kind: str, *, bias: bool) -> str:
    operands, types = ("%x, %w, %b", f"{X}, {VECTOR}, {VECTOR}") if bias else (
        "%x, %w", f"{X}, {VECTOR}"
    )  # fmt: skip
    segments = f"operandSegmentSizes = array<i32: 1, 0, 1, {int(bias)}>"
    return f"""func.func @main(%x: {X}, %w: {VECTOR}, %b: {VECTOR}) -> {X} {{
      %y, %sum = "abq.norm"({operands}) {{kind = "{kind}", epsilon = 1.0e-5 : f32, {segments}}}
          : ({types}) -> ({X}, {X})
      return %y : {X}
    }}"""


@pytest.mark.parametrize("kind, loops", [("layer", 4), ("rms", 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_loops_are_a_norm_again(kind: str, loops: int, bias: bool) -> None:
    text = norm(kind, bias=bias)
    unit = Unit(target=CpuTarget())
    facts = after(text, "decompose-norm", TIDY, unit=unit)
    assert not facts("abq.norm")
    assert len(facts("linalg.generic")) == loops
    again = after(text, "decompose-norm", TIDY, "fuse-norm", TIDY, unit=unit)
    (found,) = again("abq.norm")
    assert found.attributes["kind"].value == kind
    assert (found.opview.bias is not None) == bias


def test_a_norm_with_a_kernel_stays() -> None:
    facts = after(
        norm("layer", bias=True),
        "decompose-norm",
        unit=Unit(target=CpuTarget(max_norm_columns=128)),
    )
    assert len(facts("abq.norm")) == 1
