"""Runs of GPU artifacts with a driver in Python: tensors on the host and on the device, caches,
memory, graphs."""

from __future__ import annotations

import abqc
import fake_gpu
import numpy as np
import pytest
from fake_gpu import FakeMachine, driver
from handmade import layer_inputs, layer_reference


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def model(machine: FakeMachine):
    with abqc.load(fake_gpu.layer(), device=driver(machine)) as model:
        yield model


def check(outputs, inputs) -> None:
    for got, expected in zip(outputs, layer_reference(inputs), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-4)


def test_arrays_on_the_host(model, machine) -> None:
    assert (model.isa, model.device) == ("sm_80", "ptx-vm")
    for rows in 3, 3, 3, 3, 7, 3:
        inputs = layer_inputs(rows=rows, seed=rows)
        check(model.run(inputs), inputs)
