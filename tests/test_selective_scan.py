"""Selective scans in whole models: static codes from calibration, on CPUs and GPUs."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.compiler.commands.inspect import sections
from abqc.compiler.driver import compile_file
from abqc.errors import RecipeError
from onnx_models import save
from selective_scan_models import mixer

STATIC = "w8 a8:tensor"
SIZES = {"total": 0, "weights": 0, "code": 0}


def rows(samples: int, steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, steps, 8)).astype(np.float32) / 3


def close(actual: np.ndarray, expected: np.ndarray) -> float:
    """The error relative to the energy of what is expected."""
    return float(np.square(actual - expected).sum() / np.square(expected).sum())


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(mixer(), tmp_path_factory.mktemp("mixer"))


@pytest.fixture(scope="module")
def expected(onnx_file: Path) -> np.ndarray:
    with abqc.compile(onnx_file) as model:
        return model.run({"u": rows(3, 7, 1)})[0]


@pytest.mark.parametrize("words", ["percentile", "rotate gptq"])
def test_static_codes(onnx_file: Path, expected: np.ndarray, words: str, tmp_path: Path) -> None:
    quant = f"{STATIC} {words}"
    data = {"u": rows(16, 7, 1)}
    with abqc.compile(onnx_file, quant=quant, calib=data, output=tmp_path / "m.so") as model:
        actual = model.run({"u": rows(3, 7, 1)})[0]
        alone = model.run({"u": rows(3, 7, 1)[1:2]})[0]
        report = "\n".join(sections(model.manifest | {"bytes": SIZES}))
    assert close(actual, expected) < 2e-3
    assert "selective scan" in report and "a8:tensor" in report
    np.testing.assert_array_equal(alone, actual[1:2])  # scales are those of calibration


def test_a_scan_of_its_own_rule_stays_float(
    onnx_file: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    data = {"u": rows(16, 7, 1)}
    errors = []
    for rule in ("none", "w8 a3:tensor"):
        quant = f'{STATIC}\n"scan" {rule}'
        with abqc.compile(onnx_file, quant=quant, calib=data, output=tmp_path / "m.so") as model:
            errors.append(close(model.run({"u": rows(3, 7, 1)})[0], expected))
    assert errors[0] < 2e-3 and errors[1] > 5 * errors[0]


def test_a_rule_that_matches_no_scan(onnx_file: Path) -> None:
    with pytest.raises(RecipeError, match="matches no node"):
        abqc.compile(onnx_file, quant='w8a8\n"*skan*" none')


def test_a_gpu_has_the_codes_of_the_cpu(onnx_file: Path, tmp_path: Path) -> None:
    data, feeds = {"u": rows(16, 7, 1)}, {"u": rows(2, 3, 1)}
    outputs = []
    for target, device in (("cpu", None), ("sm_90a", "ptx-vm")):
        library = compile_file(
            onnx_file, quant=STATIC, calib=data, target=target, output=tmp_path / f"{target}.so"
        )
        outputs.append(np.asarray(abqc.load(library, device=device).run(feeds)[0]))
    np.testing.assert_allclose(*outputs, rtol=0, atol=4e-3 * np.abs(outputs[0]).max())
