"""Weights of codes and scales, as the importer reads them."""

from __future__ import annotations

import warnings

import numpy as np
from abqc.compiler.onnx_import.values.constants import QuantizedConstant, from_array
from abqc.compiler.onnx_import.values.quantized import dequantized


def test_codes_of_the_lowest_float_overflow_without_a_warning() -> None:
    """Quantizers give a mask's -3.4e38 a scale whose product with the last code is infinite."""
    codes = from_array(np.array([-128, 0], np.int8))
    scale = from_array(np.array([np.finfo(np.float32).max / 127], np.float32))
    source = QuantizedConstant(codes, scale, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = dequantized(source, (2,)).load()
    np.testing.assert_array_equal(values, [-np.inf, 0])
