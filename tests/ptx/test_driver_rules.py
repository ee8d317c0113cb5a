"""What the CUDA driver API asks of its callers, checked by the PTX machine's driver."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_size_t, c_uint64, c_void_p
from dataclasses import replace

import pytest
from abqc.compiler.cuda_driver import Cuda, Launch
from abqc.errors import AbqcError
from abqc.runtime.ptx.driver import PtxDriver

PTX = b".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry nothing() { ret; }\0"


@pytest.fixture
def driver() -> PtxDriver:
    return PtxDriver((9, 0), 1 << 20)


@pytest.fixture
def cuda(driver: PtxDriver) -> Cuda:
    return Cuda(lambda name: driver._address_of(name.encode()))


@pytest.fixture
def launch(cuda: Cuda) -> Launch:
    return Launch(cuda.function(cuda.load(PTX), "nothing", 0), 1, 32, 0, ())


def copy(cuda: Cuda) -> None:
    """From pageable memory, and nobody waits."""
    cuda.call("cuMemcpyHtoD_v2", c_uint64(cuda.allocate(16)), c_char_p(bytes(16)), c_size_t(16))


def test_what_is_written_is_there_when_a_kernel_begins(cuda: Cuda, launch: Launch) -> None:
    cuda.write(cuda.allocate(16), bytes(16))
    cuda.launch(launch)


@pytest.mark.parametrize("as_graph", [False, True])
def test_a_copy_that_nobody_waits_for(
    driver: PtxDriver, cuda: Cuda, launch: Launch, as_graph: bool
) -> None:
    """A stream that waits for no other may overtake it."""
    graph = cuda._capture([launch])

    def begin() -> None:
        if as_graph:
            cuda.call("cuGraphLaunch", graph, cuda._stream)
        else:
            cuda.launch(launch)

    copy(cuda)
    with pytest.raises(AbqcError, match="LAUNCH_FAILED"):
        begin()
    assert "cuCtxSynchronize is missing" in str(driver.take_fault())
    cuda.call("cuCtxSynchronize")
    begin()


def test_a_blocking_stream_waits_for_copies(cuda: Cuda, launch: Launch) -> None:
    copy(cuda)
    cuda._stream = c_void_p()  # the legacy default stream
    cuda.launch(launch)


def test_calls_want_a_context(cuda: Cuda, launch: Launch) -> None:
    cuda.call("cuCtxPopCurrent_v2", byref(c_void_p()))
    with pytest.raises(AbqcError, match="CUDA_ERROR_INVALID_CONTEXT"):
        cuda.launch(replace(launch, grid=2))
