"""Tensor maps that the shim has the driver make of a launch's arguments."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import abqc
import fake_gpu
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.errors import AbqcError, DeviceError
from abqc.runtime.ptx.tensor_map import TensorMap
from abqc.runtime.tensor_parameter import Extent, TensorParameter
from abqc.runtime.tensor_spec import TensorSpec
from fake_gpu import FakeMachine, driver

# scale(y, x, rows, pitch): y = 2 x, [rows][8] f32, where x is read by its map, the second one.
HOST = """
#include "shim.h"

int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *x = abqc_rt_input(ctx, 0);
    uint64_t rows = (uint64_t)x->sizes[0];
    float *y = abqc_rt_alloc(ctx, (int64_t)rows * 32);
    const uint64_t args[] = {(uint64_t)y, (uint64_t)x->data, rows, 8};
    abqc_rt_launch(ctx, 0, 1, args);
    abqc_rt_output(ctx, 0, y, 2, x->sizes, x->strides);
    return 0;
}
"""
ROWS = TensorParameter(
    1, "u8", (Extent(32), Extent(1, 2)), (Extent(4, 3),), box=(32, 64), swizzle=32
)
CUBE = TensorParameter(
    0, "f16", (Extent(16), Extent(2), Extent(3, 2)), (Extent(32), Extent(64)), (16, 1, 2)
)


@cache
def library(*maps: TensorParameter) -> Path:
    tensors = [TensorSpec(name, "float32", ("rows", 8)) for name in ("x", "y")]
    return fake_gpu.build(
        handmade.folder() / f"maps_{len(maps)}_{maps[-1].box[0]}.so",
        HOST,
        ArtifactMeta(tensors[:1], tensors[1:]),
        kernels=["scale"],
        accesses={"scale": (2, 1, 0, 0)},
        maps={"scale": maps},
    )


class Machine(FakeMachine):
    """One whose kernel has two tensor maps among its parameters."""

    def __init__(self) -> None:
        super().__init__((9, 0))
        self.kernels["scale"] = (self._twice, 4)
        self.cubes: list[TensorMap] = []

    def parameter_sizes(self, kernel):
        return [*super().parameter_sizes(kernel), *[128] * (2 * (kernel[0] == "scale"))]

    def _twice(self, machine, blocks, y, x, rows, pitch, cube, map_):
        decoded = [
            TensorMap.decode(np.frombuffer(words.to_bytes(128, "little"), np.uint8))
            for words in (cube, map_)
        ]
        self.cubes.append(decoded[0])
        assert decoded[1] == TensorMap(x, 1, (32, rows), (32,), (32, 64), (1, 1), 32)
        source = self.array(decoded[1].address, np.float32, decoded[1].sizes[1], 8)
        self.array(y, np.float32, rows, 8)[:] = 2 * source


def test_launches_and_graphs_have_maps_of_their_arguments() -> None:
    """Sent one by one, made a graph, set to other sizes and addresses."""
    machine = Machine()
    with abqc.load(library(CUBE, ROWS), device=driver(machine)) as model:
        for rows in (3, 3, 3, 5, 2, 5):
            x = np.arange(8 * rows, dtype=np.float32).reshape(rows, 8)
            (y,) = model.run({"x": x})
            np.testing.assert_array_equal(y, 2 * x)
            cube = machine.cubes[-1]
            assert cube.sizes == (16, 2, 3 * rows) and cube.strides == (32, 64)
            assert cube.element_bytes == 2 and cube.box == (16, 1, 2) and not cube.swizzle
        assert model.statistics.graph is not None and model.statistics.graph_error is None


def test_a_driver_without_tensor_maps() -> None:
    old = driver(Machine(), without={"cuTensorMapEncodeTiled"})
    with pytest.raises(DeviceError, match=r"no function cuTensorMapEncodeTiled.*CUDA 12\.0"):
        abqc.load(library(CUBE, ROWS), device=old)


def test_a_driver_that_refuses_a_map() -> None:
    """Rows of 48 bytes in a swizzle of 32."""
    wide = TensorParameter(1, "u8", ROWS.sizes, ROWS.strides, (48, 64), 32)
    message = "cannot make the tensor maps of kernel 'scale'"
    with (
        abqc.load(library(CUBE, wide), device=driver(Machine())) as model,
        pytest.raises(AbqcError, match=message),
    ):
        model.run({"x": np.zeros((3, 8), np.float32)})
