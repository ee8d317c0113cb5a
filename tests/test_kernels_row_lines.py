"""Softmax, ArgMax and ArgMin over rows on the CPU, in every instruction set, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.arg_extreme import arg_extreme_kernel
from abqc.codegen.cpu.softmax import softmax_kernel
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit
from kernel_cases import compile_jit

SIZES = [(1, 1), (3, 7), (5, 16), (4, 17), (2, 100), (3, 1024), (1, 5003)]
GUARD = 16  # elements behind a result, which stay as they are
KERNELS = [softmax_kernel(), *(arg_extreme_kernel(largest=largest) for largest in (True, False))]


def softmax(jit: Jit, x: np.ndarray) -> np.ndarray:
    y = np.full(x.size + GUARD, 7, np.float32)
    jit.run("softmax", len(x), [x.reshape(-1), y[: x.size], x.shape[1]])
    assert (y[x.size :] == 7).all()
    return y[: x.size].reshape(x.shape)


def places(jit: Jit, name: str, x: np.ndarray) -> list[int]:
    found = np.full(len(x) + 1, 7, np.int64)
    jit.run(name, len(x), [x.reshape(-1), found[:-1], len(x), x.shape[1]])
    assert found[-1] == 7
    return found[:-1].tolist()


@pytest.mark.parametrize("isa", isas.available(), ids=lambda isa: isa.name)
def test_against_numpy(isa: Isa) -> None:
    jit = compile_jit(isa, KERNELS)
    rng = np.random.default_rng(0)
    for size in SIZES:
        x = (10 * rng.standard_normal(size)).astype(np.float32)
        powers = np.exp((x - x.max(axis=1, keepdims=True)).astype(np.float64))
        expected = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(softmax(jit, x), expected, rtol=3e-6, atol=1e-30)
        few = np.round(x / 10)  # equal ones: the first is meant
        assert places(jit, "arg_max", few) == few.argmax(axis=1).tolist()
        assert places(jit, "arg_min", few) == few.argmin(axis=1).tolist()


def test_what_is_no_number() -> None:
    jit = compile_jit(isas.available()[0], KERNELS)
    x = np.zeros((5, 35), np.float32)
    x[0, 3] = np.nan
    x[1] = -np.inf
    x[2, 34] = np.inf
    x[3, :33] = -np.inf
    x[4] = np.nan
    y = softmax(jit, x)
    assert np.isnan(y[[0, 1, 2, 4]]).any(axis=1).all()
    assert y[3].tolist() == [0] * 33 + [0.5, 0.5]
    assert places(jit, "arg_max", x) == [0, 0, 34, 33, 0]
    assert places(jit, "arg_min", x) == [0, 0, 0, 0, 0]
    x[0, :4] = np.nan
    assert places(jit, "arg_max", x)[0] == places(jit, "arg_min", x)[0] == 4
