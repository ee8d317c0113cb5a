"""Compile a model, run it, and compare it with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import onnxruntime
from onnx import parser

Feeds = dict[str, np.ndarray]


def model_of(text: str, opset: int = 18) -> onnx.ModelProto:
    """A model in ONNX's textual syntax, without its header."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')


def check(
    model: onnx.ModelProto,
    feeds: Iterable[Feeds],
    folder: Path,
    tolerance: float = 1e-4,
    **options: Any,
) -> abqc.Model:
    """Compile once; shapes, types and values of all `feeds` are those of onnxruntime.

    `options` are those of `abqc.compile`.
    """
    source = folder / "model.onnx"
    onnx.save(model, source)
    compiled = abqc.compile(source, **options)
    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(source)
    for given in feeds:
        compare(compiled, given, session.run(None, given), tolerance)
    return compiled


def compare(
    model: abqc.Model, feeds: Feeds, expected: Iterable[np.ndarray], tolerance: float = 1e-4
) -> None:
    actual = model.run(feeds)
    for spec, wanted, got in zip(model.outputs, expected, actual, strict=True):
        where = f"{spec.name} for { ({name: array.shape for name, array in feeds.items()}) }"
        assert got.dtype == wanted.dtype, where
        np.testing.assert_allclose(
            got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True, err_msg=where, strict=True
        )
