"""Five ternary digits in a byte."""

from __future__ import annotations

from itertools import product

import numpy as np
from abqc.codegen.cpu.int8 import Int8Strategy
from abqc.codegen.gpu.weights import WeightLayout, pack
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.ternary_digits import pack_digits, unpack_digits
from abqc.dialects.formats import parse_scheme, quantize_weight


def test_every_byte_gives_its_digits_back() -> None:
    digits = np.array(list(product(range(3), repeat=5)))
    packed = pack_digits(digits)
    np.testing.assert_array_equal(unpack_digits(packed), digits)
    assert len(set(packed.tolist())) == 243 and packed[0] == 0


def test_bits_of_a_packed_weight() -> None:
    """1.6 bits a code; the scale and the sum of a channel have 16 each."""
    scheme = parse_scheme("wt5")
    w = np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)
    weight, spec = quantize_weight(w, scheme), MatmulSpec(64, 640, scheme, parse_scheme("a8"))
    assert weight.bits_per_weight() == 1.6 + 16 / 640
    assert Int8Strategy().pack_weight(spec, weight).size * 8 == w.size * (1.6 + 32 / 640)
    assert pack(WeightLayout.of(spec), weight).size * 8 == w.size * (1.6 + 32 / 640)
