"""Packs of what attention gives become part of it, on a GPU."""

from __future__ import annotations

import pytest
from abqc.compiler.build import resolve_target
from abqc.passes.infrastructure import Unit
from facts import Facts, after

PACKED = 'tensor<?x?x160x!abq.packed<"a">>'
HEADS, ROWS = "tensor<?x4x?x32xf32>", "tensor<?x?x4x32xf32>"


def fused(*, rows_first: int = 1, given: bool = False, target: str = "sm_80") -> Facts:
    """Attention of 4 heads, packed."""
    y = ROWS if rows_first else HEADS
    groups, whole = "[[0], [1], [2, 3]]", "tensor<?x?x128xf32>"
    if not rows_first:
        groups, whole = "[[0], [1, 2], [3]]", "tensor<?x?x32xf32>"
    more, types = (", %scale, %zero", ", tensor<?xf32>, tensor<?xi32>") if given else ("", "")
    segments = "1, 1, 1" if given else "1, 0, 0"
    text = f"""func.func @main(%q: {HEADS}, %k: {HEADS}, %v: {HEADS}, %mask: tensor<?x1x?x?xf32>,
        %scale: tensor<?xf32>, %zero: tensor<?xi32>) -> {PACKED} {{
      %y = "abq.attention"(%q, %k, %v, %mask) {{guarded = 0 : i64, mask_kind = "add",
        mask_map = affine_map<(b, h, m, t) -> (b, 0, m, t)>, scale = 0.5 : f32,
        operandSegmentSizes = array<i32: 1, 1, 1, 1>,
        rows_first = array<i64: 0, 0, 0, {rows_first}>}}
        : ({HEADS}, {HEADS}, {HEADS}, tensor<?x1x?x?xf32>) -> {y}
      %x = tensor.collapse_shape %y {groups} : {y} into {whole}
      %p = "abq.pack"(%x{more}) {{kernel = "a", operandSegmentSizes = array<i32: {segments}>}}
        : ({whole}{types}) -> {PACKED}
      return %p : {PACKED}
    }}"""
    return after(text, "fuse-attention-pack", unit=Unit(target=resolve_target(target)))


def test_a_pack_becomes_part_of_the_attention() -> None:
    facts = fused()
    (op,) = facts("abq.attention_pack")
    assert not facts("abq.attention") and not facts("abq.pack")
    assert op.attributes["kernel"].value == "a" and len(op.operands) == 4
    assert list(facts("func.return")[0].operands) == [op.results[1]]


@pytest.mark.parametrize("other", [{"rows_first": 0}, {"given": True}, {"target": "cpu"}])
def test_others_stay(other: dict[str, object]) -> None:
    facts = fused(**other)  # type: ignore[arg-type]
    assert facts("abq.attention") and facts("abq.pack")
