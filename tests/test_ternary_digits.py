"""Five ternary digits in a byte."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from abqc.codegen.codes.ternary_digits import pack_digits, pack_words, unpack_digits, unpack_words
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.gpu.weights.layout import WeightLayout, pack
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme, quantize_weight


def test_every_byte_gives_its_digits_back() -> None:
    digits = np.array(list(product(range(3), repeat=5)))
    packed = pack_digits(digits)
    np.testing.assert_array_equal(unpack_digits(packed), digits)
    assert len(set(packed.tolist())) == 243 and packed[0] == 0


@pytest.mark.parametrize("lane_bits", [8, 16])
def test_words_give_their_registers_back(lane_bits: int) -> None:
    digits = np.random.default_rng(1).integers(0, 3, (2, 40, 32 // lane_bits))
    registers = digits.astype(f"u{lane_bits // 8}").view(np.uint32)[..., 0]
    words = pack_words(registers, lane_bits)
    assert words.shape == (2, 40 * 8 // (5 * lane_bits))
    np.testing.assert_array_equal(unpack_words(words, lane_bits), registers)


def test_bits_of_a_packed_weight() -> None:
    """1.6 bits a code; the scale and the sum of a channel have 16 each."""
    scheme = parse_scheme("wt5")
    w = np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)
    weight, spec = quantize_weight(w, scheme), MatmulSpec(64, 640, scheme, parse_scheme("a8"))
    assert weight.bits_per_weight() == 1.6 + 16 / 640
    assert Int8Strategy().pack_weight(spec, weight).size * 8 == w.size * (1.6 + 32 / 640)
    assert pack(WeightLayout.of(spec), weight).size * 8 == w.size * (1.6 + 32 / 640)
