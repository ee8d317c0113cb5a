"""Elementwise loops before packs become their prologues, where the target has a kernel for that."""

from __future__ import annotations

import pytest
from abqc.codegen.strategy import Kernel
from abqc.dialects.epilogue import Epilogue
from abqc.passes.infrastructure import Unit
from facts import Facts, after

ROWS, PACKED = "tensor<?x?x96xf32>", 'tensor<?x?x112x!abq.packed<"a">>'
HERE = "affine_map<(b, s, k) -> (b, s, k)>"


class Target:
    """Has a kernel for every prologue, or for none."""

    max_norm_columns = 0

    def __init__(self, *, able: bool = True) -> None:
        self.able = able
        self.asked: list[Epilogue] = []

    def fused_pack(self, pack: Kernel, prologue: Epilogue) -> Kernel | None:
        self.asked.append(prologue)
        return Kernel(f"{pack.name}_fused", (4,), lambda m, a: None) if self.able else None


def fused(
    second: str = ROWS,
    read: str = HERE,
    *,
    others: str = "%u",
    given: str = "",
    given_types: str = "",
    segments: str = "1, 0, 0",
    results: str = "%q",
    types: str = PACKED,
    target: Target | None = None,
) -> Facts:
    """silu(%x) * %u, where %u, or one in its place, is of the type `second`, packed; with
    scales that are `given`."""
    text = f"""func.func @main(%x: {ROWS}, %u: {second}, %init: {ROWS},
        %scale: tensor<?xf32>, %zero: tensor<?xi32>) -> ({types}) {{
      %one = arith.constant 1.0 : f32
      %y = linalg.generic {{indexing_maps = [{HERE}, {read}, {HERE}],
        iterator_types = ["parallel", "parallel", "parallel"]}}
        ins(%x, {others} : {ROWS}, {second}) outs(%init : {ROWS}) {{
        ^bb0(%a: f32, %b: f32, %o: f32):
          %n = arith.negf %a : f32
          %e = math.exp %n : f32
          %d = arith.addf %e, %one : f32
          %s = arith.divf %a, %d : f32
          %r = arith.mulf %s, %b : f32
          linalg.yield %r : f32
      }} -> {ROWS}
      %q = "abq.pack"(%y{given}) {{kernel = "a", operandSegmentSizes = array<i32: {segments}>}}
        : ({ROWS}{given_types}) -> {PACKED}
      return {results} : {types}
    }}"""
    kernels = {"a": Kernel("a", (4,), lambda m, a: None)}
    return after(text, "fuse-pack", unit=Unit(target=target or Target(), kernels=kernels))


def test_a_gate_becomes_the_prologue() -> None:
    target = Target()
    facts = fused(target=target)
    (op,) = facts("abq.fused_pack")
    x, u, *_ = facts.function().regions[0].blocks[0].arguments
    assert list(op.operands) == [x, u] and not facts("linalg.generic") and not facts("abq.pack")
    (prologue,) = target.asked
    assert prologue.reads == ("element",) and "math.exp" in prologue.body


def test_a_function_of_one_tensor() -> None:
    """%x twice, as GELU reads it."""
    target = Target()
    facts = fused(others="%x", target=target)
    (op,) = facts("abq.fused_pack")
    assert len(op.operands) == 1 and target.asked[0].reads == ()


def test_one_for_each_channel_is_read_too() -> None:
    target = Target()
    facts = fused("tensor<96xf32>", "affine_map<(b, s, k) -> (k)>", target=target)
    assert facts("abq.fused_pack") and target.asked[0].reads == ("channel",)


@pytest.mark.parametrize(
    ("second", "read"),
    [
        ("tensor<?x1x96xf32>", "affine_map<(b, s, k) -> (b, 0, k)>"),
        ("tensor<?x?xf32>", "affine_map<(b, s, k) -> (b, s)>"),
        ("tensor<?x?x96xf32>", "affine_map<(b, s, k) -> (s, b, k)>"),
    ],
)
def test_other_inputs_stay_in_the_loop(second: str, read: str) -> None:
    assert fused(second, read)("linalg.generic")


def test_rows_that_others_read_are_made_apart() -> None:
    facts = fused(results="%q, %y", types=f"{PACKED}, {ROWS}")
    assert facts("linalg.generic") and facts("abq.pack")


def test_a_target_without_a_kernel() -> None:
    facts = fused(target=Target(able=False))
    assert facts("linalg.generic") and facts("abq.pack") and not facts("abq.fused_pack")


def test_packs_with_shared_scales_read_loops() -> None:
    facts = fused(
        given=", %scale, %zero", given_types=", tensor<?xf32>, tensor<?xi32>", segments="1, 1, 1"
    )
    assert facts("linalg.generic") and facts("abq.pack")
