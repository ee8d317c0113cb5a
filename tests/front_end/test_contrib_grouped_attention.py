"""GroupQueryAttention: norms, chunks, windows and caches of codes, beside onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from abqc.errors import ModelError
from front_end.contrib_forms import Arrays, Form, check, floats, model_of
from front_end.oracle import compiled, outputs

F32, I32 = np.float32, np.int32
HEADS, SHARED, WIDTH = 4, 2, 16
INPUTS = [
    "q", "k", "v", "past_k", "past_v", "last", "total", "cos", "sin", "positions", "bias", "sink",
    "k_scale", "v_scale", "q_norm", "k_norm", "new",
]  # fmt: skip
TABLES = {"cos": np.cos(floats(32, WIDTH // 2)), "sin": np.sin(floats(32, WIDTH // 2))}


def step(batch: int, new: int, capacity: int, totals: list[int]) -> Arrays:
    """`new` rows for samples that then have `totals`, with buffers of `capacity` rows."""
    return {
        "q": floats(batch, new, HEADS * WIDTH),
        "k": floats(batch, new, SHARED * WIDTH),
        "v": floats(batch, new, SHARED * WIDTH) / 2,
        "past_k": floats(batch, SHARED, capacity, WIDTH),
        "past_v": floats(batch, SHARED, capacity, WIDTH) / 2,
        "last": np.array(totals, I32) - 1,
        "total": np.array(max(totals), I32),
    }


def form(feeds: list[Arrays], constants: Arrays | None = None, **changes: Any) -> Form:
    """`changes`: attributes, and fields of Form."""
    given = {**feeds[0], **(constants or {})}
    fields = {k: changes.pop(k) for k in list(changes) if k in Form.__dataclass_fields__}
    names = [name if name in given else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    attributes = {"num_heads": HEADS, "kv_num_heads": SHARED, **changes}
    fields = {"outputs": {"y": F32, "keys": F32, "values": F32}, **fields}
    sizes = {"past_k": "_ _ c _", "past_v": "_ _ c _", "q": "_ s _", "k": "_ s _", "v": "_ s _"}
    return Form("GroupQueryAttention", feeds, constants=constants or {}, inputs=names,
                sizes=sizes, attributes=attributes, **fields)  # fmt: skip


def of_chunks(name: str, output: np.ndarray) -> np.ndarray:
    """Two samples: 2 and 3 of 3 rows are new, 5 and 7 rows of the buffers are used."""
    if name == "y":
        return np.concatenate([output[0, :2], output[1]])
    return np.concatenate([output[0, :, :5], output[1, :, :7]], axis=1)


FORMS = {
    "scores": form(
        [step(1, 3, 4, [7]), step(1, 1, 0, [1])], qk_output=1,
        outputs={"y": F32, "keys": F32, "values": F32, "scores": F32},
    ),
    "probabilities": form(
        [step(1, 3, 4, [7]), step(1, 1, 0, [1])], qk_output=2,
        outputs={"y": F32, "keys": F32, "values": F32, "scores": F32},
    ),
    "chunks": form(
        [{**step(2, 3, 10, [5, 7]), "total": np.array(8, I32), "new": np.array([2, 3], I32)}] * 2,
        TABLES, do_rotary=1, defined=of_chunks,
    ),
    # The buffers are full after the step: all of their rows are documented.
    "window": form(
        [step(1, 1, 4, [5]), step(1, 7, 4, [12])], TABLES, do_rotary=1, local_window_size=4,
        sliding_window_cache=1,
    ),
    "window with room": form(
        [step(1, 2, 6, [9]), step(1, 7, 6, [12])], TABLES, do_rotary=1, local_window_size=4,
        sliding_window_cache=1,
    ),
}  # fmt: skip


def test_agrees_with_onnxruntime(tmp_path: Path) -> None:
    check(FORMS, tmp_path)


def of_codes(kind: str, bits: int) -> Form:
    dtype, columns = (np.int8, WIDTH) if bits == 8 else (np.uint8, WIDTH // 2)
    rng = np.random.default_rng(bits)
    low, high = (-128, 128) if bits == 8 else (0, 256)

    def coded(feeds: Arrays) -> Arrays:
        shape = (*feeds["past_k"].shape[:3], columns)
        pasts = {f"past_{x}": rng.integers(low, high, shape).astype(dtype) for x in "kv"}
        return {**feeds, **pasts}

    scale = np.full(1, 0.3 if bits == 4 else 0.02, F32)
    if kind == "PER_CHANNEL":
        scale = scale * (1 + np.abs(floats(1, SHARED, 1, WIDTH)))
    return form(
        [coded(step(1, 2, 4, [6])), coded(step(1, 3, 0, [3]))],
        {"k_scale": scale, "v_scale": scale / 2},
        k_quant_type=kind, v_quant_type=kind, kv_cache_bit_width=bits,
        outputs={"y": F32, "keys": dtype, "values": dtype}, tolerance=1e-3,
    )  # fmt: skip


def test_caches_of_codes(tmp_path: Path) -> None:
    forms = {"bytes": of_codes("PER_TENSOR", 8), "nibbles": of_codes("PER_CHANNEL", 4)}
    check(forms, tmp_path)


def test_norms_of_queries_and_keys(tmp_path: Path) -> None:
    """As the node without them gives for queries and keys that are normed before it."""
    feeds = step(1, 3, 4, [7])
    weights = {"q_norm": floats(WIDTH), "k_norm": np.abs(floats(WIDTH))}
    normed = form([feeds], {**TABLES, **weights}, do_rotary=1, qk_norm_epsilon=1e-3,
                  k_norm_epsilon=0.1)  # fmt: skip
    plain = form([feeds], TABLES, do_rotary=1)
    by_hand = dict(feeds)
    for x, epsilon in (("q", 1e-3), ("k", 0.1)):
        heads = feeds[x].reshape(-1, WIDTH)
        scale = np.sqrt((heads**2).mean(-1, keepdims=True) + epsilon)
        by_hand[x] = (heads / scale * weights[f"{x}_norm"]).reshape(feeds[x].shape)
    model = compiled(model_of({"a": normed, "b": plain}), tmp_path)
    given = {f"a.{k}": v for k, v in feeds.items()} | {f"b.{k}": v for k, v in by_hand.items()}
    got = outputs(model, given)
    for y, wanted in zip(got[:3], got[3:], strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


WRONG = {
    "one norm": (form([step(1, 1, 2, [3])], {"q_norm": floats(WIDTH)}), "come together"),
    "no window": (form([step(1, 1, 2, [3])], sliding_window_cache=1), "local_window_size"),
    "no scale": (form([step(1, 1, 2, [3])], k_quant_type="PER_TENSOR"), "k_scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_forms_are_refused(case: str, tmp_path: Path) -> None:
    wrong, message = WRONG[case]
    with pytest.raises(ModelError, match=message):
        compiled(model_of({"node": wrong}), tmp_path)
