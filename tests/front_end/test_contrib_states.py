"""CausalConvWithState, LinearAttention, AttnLSTM: what carries a state through time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from abqc.errors import ModelError
from front_end.contrib_forms import Arrays, Form, check, floats, model_of
from front_end.oracle import compiled

F16, F32, I32 = np.float16, np.float32, np.int32
CHANNELS, TAPS = 6, 4
WEIGHTS = {"w": floats(CHANNELS, 1, TAPS), "bias": floats(CHANNELS)}


def convolved(a: Arrays, dilation: int, window: int) -> Sequence[np.ndarray]:
    """Of [B, C, L], with the states behind the last `window` columns."""
    past = a["past"][-1].astype(np.float64)
    whole, length = np.concatenate([past, a["x"]], 2), a["x"].shape[2]
    taps = [a["w"][:, 0, k][:, None] * whole[:, :, k * dilation :][:, :, :length]
            for k in range(TAPS)]  # fmt: skip
    states = [
        whole[:, :, end : end + past.shape[2]] if end > 0 else np.zeros_like(past)
        for end in range(length - window + 1, length + 1)
    ]
    return [sum(taps), np.stack(states)]


def windowed(dtype: Any) -> Form:
    feeds = [
        {"x": floats(2, CHANNELS, n, dtype=dtype), "past": floats(3, 2, CHANNELS, 6, dtype=dtype)}
        for n in (5, 1)
    ]
    return Form(
        "CausalConvWithState", feeds, {"y": dtype, "state": dtype},
        {"w": WEIGHTS["w"].astype(dtype)}, ["x", "w", "", "past"], {"x": "b _ l"},
        {"dilation": 2, "state_window": 3}, lambda a: convolved(a, 2, 3),
        1e-2 if dtype is F16 else 1e-4,
    )  # fmt: skip


CONVOLUTIONS = {
    "first": Form(
        "CausalConvWithState",
        [{"x": floats(2, CHANNELS, 5)}, {"x": floats(1, CHANNELS, 1)}],
        {"y": F32, "state": F32}, WEIGHTS, sizes={"x": "b _ l"}, attributes={"activation": "silu"},
    ),
    "next": Form(
        "CausalConvWithState",
        [{"x": floats(2, CHANNELS, n), "past": floats(2, CHANNELS, 6)} for n in (1, 9)],
        {"y": F32, "state": F32}, {"w": WEIGHTS["w"]}, ["x", "w", "", "past"],
        {"x": "b _ l", "past": "b _ _"}, {"dilation": 2},
    ),
    "channels last": Form(
        "CausalConvWithState",
        [{"x": floats(2, n, 2, 3), "past": floats(2, 3, 2, 3)} for n in (5, 1)],
        {"y": F32, "state": F32}, WEIGHTS, ["x", "w", "bias", "past"],
        {"x": "b l _ _"}, {"channels_last": 1},
    ),
}  # fmt: skip


def test_causal_convolutions(tmp_path: Path) -> None:
    check(CONVOLUTIONS, tmp_path)


def test_states_of_several_positions(tmp_path: Path) -> None:
    check({"f32": windowed(F32), "f16": windowed(F16)}, tmp_path)


def test_what_only_cuda_has_is_refused(tmp_path: Path) -> None:
    feeds = [{"x": floats(1, CHANNELS, 3)}]
    form = Form("CausalConvWithState", feeds, {"y": F32}, WEIGHTS, attributes={"ndim": 2})
    with pytest.raises(ModelError, match="'ndim' is 2"):
        compiled(model_of({"conv": form}), tmp_path)


KEYS, VALUES = 8, 5


def tokens(rule: str, of_query: int, of_key: int, heads: int, by_row: bool = False) -> Form:
    """`of_query` and `of_key`: heads; `by_row`: each row of the state has its own decay."""

    def feeds(batch: int, length: int) -> Arrays:
        given = {
            "q": floats(batch, length, of_query * KEYS),
            "k": floats(batch, length, of_key * KEYS) / 3,
            "v": floats(batch, length, heads * VALUES),
            "past": floats(batch, heads, KEYS, VALUES),
        }
        if rule.startswith("gated"):
            given["decay"] = -np.abs(floats(batch, length, heads * (KEYS if by_row else 1)))
        if rule.endswith("delta"):
            given["beta"] = np.abs(np.sin(floats(batch, length, heads if by_row else 1)))
        return given

    first = feeds(2, 5)
    names = ["q", "k", "v", "past", "decay", "beta"]
    return Form(
        "LinearAttention", [first, feeds(1, 1), feeds(1, 7)], {"y": F32, "state": F32},
        {}, [name if name in first else "" for name in names],
        {name: "b _ _ _" if name == "past" else "b t _" for name in first},
        {"update_rule": rule, "q_num_heads": of_query, "kv_num_heads": heads},
    )  # fmt: skip


ATTENTIONS = {
    "linear": tokens("linear", 2, 2, 2),
    "gated": tokens("gated", 4, 2, 2, by_row=True),
    "delta": tokens("delta", 2, 2, 4),
    "gated delta": tokens("gated_delta", 4, 1, 4),
    "gated delta by row": tokens("gated_delta", 2, 2, 2, by_row=True),
}


def test_linear_attention(tmp_path: Path) -> None:
    check(ATTENTIONS, tmp_path)


def attended(a: Arrays, window: int) -> Sequence[np.ndarray]:
    """The gated delta rule of one head, step by step."""
    q, k, v, decay, beta = (a[name].astype(np.float64) for name in ("q", "k", "v", "decay", "beta"))
    state, rows = a["past"][-1].astype(np.float64), []
    states = [np.zeros_like(state)] * window
    for t in range(q.shape[1]):
        state = state * np.exp(decay[:, t])[..., None, None]
        known = np.einsum("bhkv,bk->bhv", state, k[:, t])
        new = beta[:, t][..., None] * (v[:, t][:, None] - known)
        state = state + np.einsum("bk,bhv->bhkv", k[:, t], new)
        states.append(state)
        rows.append(0.5 * np.einsum("bk,bhkv->bhv", q[:, t], state)[:, 0])
    return [np.stack(rows, 1), np.stack(states[-window:])]


def test_states_of_several_tokens_and_halves(tmp_path: Path) -> None:
    def feeds(length: int, dtype: Any) -> Arrays:
        return {
            "q": floats(2, length, KEYS, dtype=dtype),
            "k": floats(2, length, KEYS, dtype=dtype) / dtype(3),
            "v": floats(2, length, VALUES, dtype=dtype),
            "past": floats(3, 2, 1, KEYS, VALUES),
            "decay": -np.abs(floats(2, length, 1, dtype=dtype)),
            "beta": np.abs(np.sin(floats(2, length, 1, dtype=dtype))),
        }

    forms = {
        name: Form(
            "LinearAttention", [feeds(n, dtype) for n in (6, 2)], {"y": dtype, "state": F32},
            sizes=dict.fromkeys(("q", "k", "v", "decay", "beta"), "b t _"),
            attributes={"q_num_heads": 1, "kv_num_heads": 1, "state_window": 3, "scale": 0.5},
            reference=lambda a: attended(a, 3), tolerance=tolerance,
        )
        for name, dtype, tolerance in (("f32", F32, 1e-4), ("f16", F16, 5e-3))
    }  # fmt: skip
    check(forms, tmp_path)


HIDDEN, INNER, DEPTH, INPUT, LAYER = 4, 5, 6, 3, 7


def remembering(direction: str, with_layer: bool) -> Form:
    ways = 2 if direction == "bidirectional" else 1
    beside = LAYER if with_layer else DEPTH
    constants = {
        "w": floats(ways, 4 * HIDDEN, INPUT + beside) / 2,
        "r": floats(ways, 4 * HIDDEN, HIDDEN) / 2, "b": floats(ways, 8 * HIDDEN),
        "p": floats(ways, 3 * HIDDEN), "qw": floats(ways, HIDDEN, INNER),
        "mw": floats(ways, DEPTH, INNER), "v": floats(ways, INNER),
        **({"aw": floats(ways, DEPTH + HIDDEN, LAYER) / 2} if with_layer else {}),
    }  # fmt: skip
    feeds = [
        {
            "x": floats(steps, 2, INPUT), "lengths": np.array([steps, (steps + 1) // 2], I32),
            "memory": floats(2, 4, DEPTH), "seen": np.array([4, 2], I32),
        }
        for steps in (5, 2)
    ]  # fmt: skip
    inputs = ["x", "w", "r", "b", "lengths", "", "", "p", "qw", "mw", "v", "memory", "seen"]
    return Form(
        "AttnLSTM", feeds, {"y": F32, "h": F32, "c": F32}, constants,
        [*inputs, *(["aw"] if with_layer else [])], {"x": "t b _", "memory": "b m _"},
        {"hidden_size": HIDDEN, "direction": direction,
         "activations": ["Sigmoid", "Tanh", "Tanh"] * ways},
    )  # fmt: skip


def test_attention_in_an_lstm(tmp_path: Path) -> None:
    forms = {"forward": remembering("forward", True), "reverse": remembering("reverse", False),
             "both": remembering("bidirectional", True)}  # fmt: skip
    check(forms, tmp_path)
