"""Tensors of other packages through DLPack's C exchange API, with a package of our own."""

from __future__ import annotations

import ctypes
from typing import Any

import abqc
import fake_gpu
import numpy as np
import pytest
from abqc.errors import InputError
from abqc.runtime.exchange import ExchangeTable, exchange_of
from fake_gpu import FakeMachine, GpuTensor, driver
from handmade import layer_inputs, layer_reference
from test_cuda_run import stream_of

NAME = b"dlpack_exchange_api"


class Package:
    """The functions of a package whose work goes into `stream`."""

    def __init__(self, *, major: int = 1, previous: int = 0) -> None:
        self.stream = 0
        self.described = 0
        self.kept: list[Any] = []
        describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
        current = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.c_int, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
        )
        self._functions = describe(self._describe), current(self._current)
        self.table = ExchangeTable(
            major,
            3,
            previous,
            tensor_from_object=ctypes.cast(self._functions[0], ctypes.c_void_p).value,
            current_work_stream=ctypes.cast(self._functions[1], ctypes.c_void_p).value,
        )

    def capsule(self) -> Any:
        return fake_gpu._new_capsule(ctypes.addressof(self.table), NAME, None)

    def _describe(self, value: GpuTensor, address: int) -> int:
        self.described += 1
        tensor = value.structure()
        self.kept.append(value)
        ctypes.memmove(address, ctypes.addressof(tensor), 48)
        return 0

    def _current(self, kind: int, ordinal: int, stream: Any) -> int:
        stream[0] = self.stream or None
        return 0


def tensors_of(package: Package) -> type[GpuTensor]:
    """A type of tensors that has the package's functions."""
    return type("Tensor", (GpuTensor,), {"__dlpack_c_exchange_api__": package.capsule()})


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def test_tensors_are_described_by_their_package(machine) -> None:
    package = Package()
    kind = tensors_of(package)
    inputs = layer_inputs()
    given = {name: kind(machine, array) for name, array in inputs.items()}
    y = kind(machine, np.zeros_like(inputs["x"]))
    with abqc.load(fake_gpu.layer(), device=driver(machine)) as model:
        for _ in range(3):
            outputs = model.run(given, outputs={"y": y})
        for got, want in zip(outputs, layer_reference(inputs), strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)
    assert package.described == 3 * (len(given) + 1)
    assert not any(tensor.streams for tensor in given.values())


def test_streams_are_ordered_once_a_run(machine) -> None:
    package = Package()
    kind = tensors_of(package)
    given = {name: kind(machine, array) for name, array in layer_inputs().items()}
    fake = driver(machine)
    stream = stream_of(fake)
    with abqc.load(fake_gpu.layer(), device=fake) as model:
        model.run(given, stream=stream)
        assert [t.streams for t in given.values()].count([stream]) == 1
        package.stream = stream
        model.run(given, stream=stream)
        assert sum(len(t.streams) for t in given.values()) == 1
        model.run(given)  # in the legacy default stream
        assert sorted(t.streams for t in given.values())[-1][-1] == 1


def test_what_wants_gradients_is_left_to_the_package(machine) -> None:
    package = Package()
    kind = tensors_of(package)

    def refuse(self: Any, *, stream: int | None = None) -> Any:
        raise BufferError("it requires gradients")

    kind.requires_grad = True  # type: ignore[attr-defined]
    kind.__dlpack__ = refuse  # type: ignore[method-assign]
    x = kind(machine, layer_inputs()["x"])
    with (
        abqc.load(fake_gpu.layer(), device=driver(machine)) as model,
        pytest.raises(InputError, match="'x' cannot be taken through DLPack: it requires"),
    ):
        model.run(layer_inputs() | {"x": x})
    assert not package.described


def test_tables_of_other_versions() -> None:
    old = Package()
    new = Package(major=2, previous=ctypes.addressof(old.table))
    assert exchange_of(tensors_of(new)) is not None
    assert exchange_of(tensors_of(Package(major=2))) is None
    without = Package()
    without.table.tensor_from_object = None
    assert exchange_of(tensors_of(without)) is None
    assert exchange_of(list) is None
