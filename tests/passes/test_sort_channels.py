"""Channels are put in the order of their weights' sizes: the same outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_transformers as small
from abqc.passes.channels.search import permutable_channels
from abqc.passes.infrastructure import walk
from test_rotate_stream import Rotated


def sorted_weights(model: Rotated) -> list[str]:
    """The products whose columns are in order."""
    found = []
    for op in walk(model.module, "abq.matmul"):
        weight = model.unit.store.get(op.operands[1].owner.attributes["sym"].value)
        squares = np.square(weight).sum(axis=0)
        if (np.diff(squares) >= 0).all():
            found.append(op.attributes["node"].value)
    return found


@pytest.mark.parametrize("norm", ["rms", "layer spelled out"])
def test_decoders_are_the_same_sorted(norm: str, tmp_path: Path) -> None:
    model = Rotated(small.decoder(norm), tmp_path, "w4:g16 a8 sort")
    assert {"mlp.0.down", "mlp.1.down"} <= set(sorted_weights(model))
    assert model.error() < 1e-5


def test_norms_behind_the_branch_do_not_prevent_it(tmp_path: Path) -> None:
    model = Rotated(small.decoder("layer", post=True, tied=True), tmp_path, "w4:g16 a8 sort")
    (table,) = (op.operands[0].owner for op in walk(model.module, "abq.gather"))
    products = {op.attributes["node"].value: op for op in walk(model.module, "abq.matmul")}
    head = products["head"].operands[1].owner
    assert "sorted" in table.attributes["sym"].value
    assert table.attributes["sym"] == head.attributes["sym"]  # still one weight
    assert model.error() < 1e-5


def test_heads_keep_their_columns(tmp_path: Path) -> None:
    """What attention mixes has no order of its own; a product of two activations prevents it."""
    model = Rotated(small.decoder(), tmp_path, "none")
    (out,) = (
        op
        for op in walk(model.module, "abq.matmul")
        if op.attributes["node"].value == "attention.0.out"
    )
    with model.module.context:
        assert permutable_channels(out.operands[0]).blockers


def test_what_is_rotated_or_has_no_groups_stays(tmp_path: Path) -> None:
    for recipe in ("w8a8 sort", "w4a4 rotate sort", "w4a4"):
        model = Rotated(small.decoder(), tmp_path / recipe, recipe)
        symbols = [op.attributes["sym"].value for op in walk(model.module, "abq.weight")]
        assert not any("sorted" in symbol for symbol in symbols)
