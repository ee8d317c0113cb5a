"""Decoding of codes in registers, in the PTX machine: every code of every format."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.builder import POINTER, kernel
from abqc.codegen.gpu.weights.codebook import codebook_s8
from abqc.codegen.gpu.weights.decode import half_register, s8_factor, s8_register
from abqc.codegen.gpu.weights.layout import WeightLayout, pack
from abqc.codegen.gpu.weights.pointers import PackedWeight
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import QuantizedTensor, parse_scheme
from gpu_kernels import run

WEIGHTS = [
    *(f"w{bits}:channel" for bits in range(1, 9)),
    *(f"w{bits}:channel:asym" for bits in range(1, 9)),
    "w2*",
    "wt",
]
COLUMNS = 32


def decode_first_chunk(layout: WeightLayout, blob: np.ndarray, element: str | None) -> np.ndarray:
    """All registers of the first chunk, [register, lane], as a warp decodes them."""
    name = f"decode_{layout.format.name}_{element}"

    def emit(module, arch):
        with kernel(module, arch, name, [POINTER, POINTER], threads=32) as (b, _, w, out):
            weight = PackedWeight(b, layout, w, b.const(COLUMNS, "i32"))
            words = weight.chunk_words(weight.tile(b.const(0, "i32")))
            for register in range(layout.chunk_registers):
                if element is None:
                    value = s8_register(b, layout, words, register)
                else:
                    value = b.to_bits(half_register(b, layout, words, register, element))
                b.store(value, out, (b.thread + register * 32) * 4)

    out = np.zeros((layout.chunk_registers, 32), np.uint32)
    return run(Kernel(name, (1,), emit), 1, [blob, out])[1]


@pytest.mark.parametrize("element", [None, "f16", "bf16"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_code(weight, element):
    scheme = parse_scheme(weight)
    a_scheme = parse_scheme("a8") if element is None else None
    spec = MatmulSpec(COLUMNS, 128, scheme, a_scheme)
    layout = WeightLayout.of(spec)
    codes = np.resize(scheme.format.codes, (COLUMNS, 128)).astype(scheme.format.dtype)
    groups = (COLUMNS, scheme.n_groups(128))
    zero = None if scheme.symmetric else np.zeros(groups, np.uint8)
    tensor = QuantizedTensor(codes, np.ones(groups, np.float16), zero, scheme)
    decoded = decode_first_chunk(layout, pack(layout, tensor), element)
    if element is None:
        kind = np.int8 if scheme.symmetric else np.uint8
        values = decoded.view(kind).astype(np.float64) / s8_factor(scheme.format)
    elif element == "f16":
        values = decoded.view(np.float16).astype(np.float64)
    else:
        values = (decoded.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    count = layout.chunk_units * 32
    assert sorted(values.reshape(-1).tolist()) == sorted(codes[:, :count].reshape(-1).tolist())


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_codebooks(size):
    values = [int(v) for v in np.random.default_rng(size).integers(-128, 128, size)]

    def emit(module, arch):
        name = f"codebook{size}"
        with kernel(module, arch, name, [POINTER, POINTER], threads=32) as (b, _, codes, out):
            word = b.load(codes, "i32", b.thread * 4)
            b.store(codebook_s8(b, word, values), out, b.thread * 4)

    codes = np.arange(128).astype(np.uint8) % size
    out = run(Kernel(f"codebook{size}", (1,), emit), 1, [codes, np.zeros(128, np.int8)], SM_80)[1]
    np.testing.assert_array_equal(out, np.array(values)[codes])
