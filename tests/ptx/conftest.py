"""Fixtures of the PTX machine's tests: kernels of CUDA C, one fixture to a file under cuda/."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_c import NVCC, CudaFile, compile_cuda


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> dict[str, CudaFile]:
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    directory = tmp_path_factory.mktemp("ptx")
    names = ("elementwise", "collective", "control", "matrix")
    return {name: compile_cuda(name, directory) for name in names}


@pytest.fixture(params=["whole", "small batches", "counted"])
def mode(request) -> str:
    """All blocks at once, two warps at a time, and with counters: to the same result."""
    return request.param


@pytest.fixture
def elementwise(compiled, mode) -> CudaFile:
    return _in_mode(compiled["elementwise"], mode)


@pytest.fixture
def collective(compiled, mode) -> CudaFile:
    return _in_mode(compiled["collective"], mode)


@pytest.fixture
def control(compiled, mode) -> CudaFile:
    return _in_mode(compiled["control"], mode)


@pytest.fixture
def matrix(compiled, mode) -> CudaFile:
    return _in_mode(compiled["matrix"], mode)


def _in_mode(file: CudaFile, mode: str) -> CudaFile:
    file.mode = mode
    return file


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2024)
