"""Compiled models with convolutions of codes, sizes of images known at run time, against numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.codegen import isa as isas
from abqc.compiler.driver import compile_file
from abqc.dialects import reference
from abqc.dialects.formats import parse_scheme, quantize_activation, quantize_weight
from abqc.dialects.reference import ConvGeometry
from abqc.runtime.artifact import manifest_of
from onnx_models import model, node

ISAS = [isa.name for isa in isas.available()]
CHANNELS = 6


@dataclass(frozen=True)
class Conv:
    """A convolution that reads x."""

    name: str
    outputs: int
    geometry: ConvGeometry

    @cached_property
    def weight(self) -> np.ndarray:
        rng = np.random.default_rng(self.outputs)
        return rng.standard_normal((self.outputs, CHANNELS, *self.geometry.window), np.float32)

    @cached_property
    def bias(self) -> np.ndarray:
        return np.random.default_rng(1 + self.outputs).standard_normal(self.outputs, np.float32)

    def expected(self, x: np.ndarray, weight: str) -> np.ndarray:
        codes, scale, zero = quantize_activation(x.reshape(len(x), -1), parse_scheme("a8"))
        flat = self.weight.reshape(self.outputs, -1)
        quantized = quantize_weight(flat, parse_scheme(weight))
        codes = codes.reshape(x.shape)
        return reference.conv(codes, scale, zero, quantized, self.geometry, self.bias)


IMAGES = (
    Conv("skewed", 20, ConvGeometry((3, 3), (2, 1), (1, 2), (1, 2, 0, 2))),
    Conv("flat", 33, ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))),
    Conv("wide", 5, ConvGeometry((5, 5), (1, 1), (1, 1), (2, 2, 2, 2))),
)
LINES = (Conv("line", 9, ConvGeometry((4,), (3,), (1,), (1, 2))),)


def compiled(folder: Path, convs: Sequence[Conv], axes: Sequence[str], recipe: str) -> Path:
    """The library of a model in which all of `convs` read x [n, CHANNELS, *axes]."""
    nodes, outputs, constants = [], [], {}
    for conv in convs:
        geometry, name = conv.geometry, conv.name
        steps = {key: list(getattr(geometry, key)) for key in ("strides", "dilations", "pads")}
        nodes.append(node("Conv", f"x {name}.w {name}.b", name, name, **steps))
        outputs.append((name, np.float32, ["n", conv.outputs, *(name + axis for axis in axes)]))
        constants |= {f"{name}.w": conv.weight, f"{name}.b": conv.bias}
    proto = model(nodes, [("x", np.float32, ["n", CHANNELS, *axes])], outputs, constants)
    onnx.save(proto, folder / "model.onnx")
    output, cpu = folder / "model.so", ",".join(ISAS)
    return compile_file(folder / "model.onnx", quant=recipe, output=output, cpu=cpu)


@pytest.mark.parametrize("weight", ["w8", "w4:g16"])
@pytest.mark.parametrize(
    ("convs", "axes", "sizes"),
    [
        (IMAGES, ["h", "w"], [(1, CHANNELS, 23, 37), (3, CHANNELS, 5, 8), (2, CHANNELS, 40, 9)]),
        (LINES, ["l"], [(2, CHANNELS, 100), (1, CHANNELS, 4)]),
    ],
    ids=["images", "lines"],
)
def test_agrees(
    tmp_path: Path,
    weight: str,
    convs: Sequence[Conv],
    axes: Sequence[str],
    sizes: Sequence[tuple[int, ...]],
) -> None:
    library = compiled(tmp_path, convs, axes, f"{weight} a8")
    assert {op["strategy"] for op in manifest_of(library)["ops"]} == {"int8-direct"}
    rng = np.random.default_rng(0)
    for isa in ISAS:
        with abqc.load(library, isa=isa, threads=2) as loaded:
            for size in sizes:
                x = rng.standard_normal(size, np.float32) + np.float32(0.2)
                for conv, y in zip(convs, loaded.run({"x": x}), strict=True):
                    expected = conv.expected(x, weight)
                    close = {"rtol": 0, "atol": 1e-6 * np.abs(expected).max()}
                    np.testing.assert_allclose(y, expected, **close, err_msg=f"{isa} {size}")


def test_gates_before_are_part_of_quantizing(tmp_path: Path) -> None:
    """A number for each channel of a sample, images of sizes known at run time."""
    nodes, outputs, constants = [node("Relu", "s", "g"), node("Mul", "x g", "m")], [], {}
    for conv in IMAGES[:2]:
        geometry, name = conv.geometry, conv.name
        steps = {key: list(getattr(geometry, key)) for key in ("strides", "dilations", "pads")}
        nodes.append(node("Conv", f"m {name}.w {name}.b", name, name, **steps))
        outputs.append((name, np.float32, ["n", conv.outputs, f"{name}h", f"{name}w"]))
        constants |= {f"{name}.w": conv.weight, f"{name}.b": conv.bias}
    given = [("x", np.float32, ["n", CHANNELS, "h", "w"]), ("s", np.float32, ["n", CHANNELS, 1, 1])]
    onnx.save(model(nodes, given, outputs, constants), tmp_path / "model.onnx")
    output, cpu = tmp_path / "model.so", ",".join(ISAS)
    library = compile_file(tmp_path / "model.onnx", quant="w8 a8", output=output, cpu=cpu)
    kernels = {launch.get("kernel", "") for launch in manifest_of(library)["launches"]}
    assert sum(kernel.startswith("gated_") for kernel in kernels) == 3
    rng = np.random.default_rng(0)
    for size in [(1, CHANNELS, 23, 37), (3, CHANNELS, 5, 8)]:
        x, s = (rng.standard_normal(shape, np.float32) for shape in (size, (*size[:2], 1, 1)))
        expected = [conv.expected(x * np.maximum(s, 0), "w8") for conv in IMAGES[:2]]
        for isa in ISAS:
            with abqc.load(library, isa=isa, threads=2) as loaded:
                for y, want in zip(loaded.run({"x": x, "s": s}), expected, strict=True):
                    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("weight", ["w8", "w4:g16"])
def test_loops_behind_are_epilogues(tmp_path: Path, weight: str) -> None:
    """An activation, a scale for each channel of a sample, and a residual, in one kernel."""
    nodes, outputs, constants = [], [], {}
    scale = np.random.default_rng(3).standard_normal(33).astype(np.float32)
    for conv in IMAGES[:2]:
        geometry, name = conv.geometry, conv.name
        steps = {key: list(getattr(geometry, key)) for key in ("strides", "dilations", "pads")}
        nodes += [
            node("Conv", f"x {name}.w {name}.b", name, name, **steps),
            node("Relu", name, f"{name}.r"),
            node("Mul", f"{name}.r {name}.s", f"{name}.m"),
            node("Add", f"{name}.m {name}.given", f"{name}.y"),
        ]
        sizes = ["n", conv.outputs, f"{name}h", f"{name}w"]
        outputs.append((f"{name}.y", np.float32, sizes))
        channels = scale[: conv.outputs].reshape(1, -1, 1, 1)
        constants |= {f"{name}.w": conv.weight, f"{name}.b": conv.bias, f"{name}.s": channels}
    given = [(f"{name}.given", np.float32, sizes) for (name, _, sizes) in outputs]
    given = [(name.replace(".y.given", ".given"), dtype, sizes) for name, dtype, sizes in given]
    proto = model(nodes, [("x", np.float32, ["n", CHANNELS, "h", "w"]), *given], outputs, constants)
    onnx.save(proto, tmp_path / "model.onnx")
    output, cpu = tmp_path / "model.so", ",".join(ISAS)
    library = compile_file(tmp_path / "model.onnx", quant=f"{weight} a8", output=output, cpu=cpu)
    kernels = [launch.get("kernel", "") for launch in manifest_of(library)["launches"]]
    epilogues = [kernel for kernel in kernels if "_epilogue_" in kernel]
    by_channels = [kernel for kernel in epilogues if "_patches_" in kernel]
    assert len(by_channels) == (1 if weight == "w8" else 0)  # of small images, one scale a channel
    assert len(epilogues) == 2 + len(by_channels)
    rng = np.random.default_rng(0)
    for size in [(1, CHANNELS, 23, 37), (3, CHANNELS, 5, 8)]:
        feeds = {"x": rng.standard_normal(size, np.float32)}
        expected = []
        for conv in IMAGES[:2]:
            y = np.maximum(conv.expected(feeds["x"], weight), 0)
            given_ = rng.standard_normal(y.shape, np.float32)
            feeds[f"{conv.name}.given"] = given_
            expected.append(y * scale[: conv.outputs].reshape(1, -1, 1, 1) + given_)
        for isa in ISAS:
            with abqc.load(library, isa=isa, threads=2) as loaded:
                for y, exact in zip(loaded.run(feeds), expected, strict=True):
                    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_images_without_samples_have_no_outputs(tmp_path: Path) -> None:
    library = compiled(tmp_path, IMAGES[:2], ["h", "w"], "w8a8")
    with abqc.load(library) as loaded:
        y, _ = loaded.run({"x": np.zeros((0, CHANNELS, 8, 8), np.float32)})
    assert y.shape[0] == 0


def test_an_image_smaller_than_the_window_is_an_error_of_the_run(tmp_path: Path) -> None:
    library = compiled(tmp_path, LINES, ["l"], "w8a8")
    with abqc.load(library) as loaded, pytest.raises(abqc.AbqcError, match="smaller than"):
        loaded.run({"x": np.zeros((1, CHANNELS, 0), np.float32)})
