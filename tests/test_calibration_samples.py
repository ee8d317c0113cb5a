"""Calibration data on their way to the model."""

from __future__ import annotations

import numpy as np
from abqc.compiler.calibration.samples import _cut
from abqc.runtime.tensor_spec import TensorSpec


def test_padding_behind_the_last_token_is_cut() -> None:
    shape = ("batch", "tokens")
    inputs = [TensorSpec("input_ids", "int64", shape), TensorSpec("attention_mask", "int64", shape)]
    lengths = [7, 2, 9, 3]
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, np.arange(48).reshape(4, 12), 0)
    arrays = {"input_ids": ids, "attention_mask": mask}
    (feeds,) = _cut("file", arrays, inputs, 2048)
    assert feeds["attention_mask"].sum(axis=1).tolist() == [2, 3, 7, 9]
    assert feeds["input_ids"].shape == (4, 9)
    np.testing.assert_array_equal(feeds["input_ids"][3], ids[2, :9])
    other = [TensorSpec("input_ids", "int64", ("batch", "others")), inputs[1]]
    (feeds,) = _cut("file", arrays, other, 2048)
    np.testing.assert_array_equal(feeds["input_ids"], ids)
