"""Every element type from and to every other one, bit for bit as ONNX's reference has it."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.onnx_import.values.constants import from_array
from onnx import TensorProto, helper
from onnx.reference.ops.op_cast import cast_to

SMALL = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1")
FLOATS = ("FLOAT16", "BFLOAT16", "DOUBLE", *SMALL)
INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "INT4", "UINT4")


def number(name: str) -> int:
    return TensorProto.DataType.Value(name)


def compiled(nodes: list, source: str, outputs: dict[str, str], folder: Path) -> abqc.Model:
    """A model of one vector `x` whose outputs have these types."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", number(source), ["n"])],
        [helper.make_tensor_value_info(n, number(t), ["n"]) for n, t in outputs.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(model, folder / "model.onnx")
    return abqc.compile(folder / "model.onnx")


def floats() -> np.ndarray:
    """Random bits, all magnitudes that small types have, halfway cases, and what is no number."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 2000, dtype=np.uint32).view(np.float32)
    steps = np.arange(-128, 128, dtype=np.float32)
    scaled = np.concatenate([steps * np.float32(2.0**e) for e in range(-20, 12, 3)])
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 480, 57344, 61440, 65520, 1e30])
    with np.errstate(invalid="ignore"):  # of NaNs that signal
        return np.concatenate([bits, scaled, edges]).astype(np.float32)


@pytest.mark.parametrize("saturate", [0, 1])
def test_floats_are_rounded_to_small_ones(saturate: int, tmp_path: Path) -> None:
    nodes, outputs = [], {}
    for name in FLOATS:
        options = {"saturate": saturate} if name.startswith("FLOAT8") else {}
        nodes.append(helper.make_node("Cast", ["x"], [name], to=number(name), **options))
        nodes.append(helper.make_node("Cast", [name], [f"{name}.back"], to=TensorProto.FLOAT))
        outputs[f"{name}.back"] = "FLOAT"
    x = floats()
    results = compiled(nodes, "FLOAT", outputs, tmp_path).run({"x": x})
    for name, result in zip(FLOATS, results, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = cast_to(x, number(name), bool(saturate)).astype(np.float32)
        np.testing.assert_array_equal(result, wanted, err_msg=name)


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two(mode: str, tmp_path: Path) -> None:
    to = number("FLOAT8E8M0")
    nodes = [
        helper.make_node("Cast", ["x"], ["e"], to=to, round_mode=mode),
        helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
    ]
    x = np.abs(floats())
    (result,) = compiled(nodes, "FLOAT", {"y": "FLOAT"}, tmp_path).run({"x": x})
    wanted = cast_to(x, to, True, mode).astype(np.float32)
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("name", SMALL)
def test_all_codes(name: str, tmp_path: Path) -> None:
    """Codes in, what they stand for out, and back to the same codes."""
    dtype = helper.tensor_dtype_to_np_dtype(number(name))
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    count = 16 if name == "FLOAT4E2M1" else 256
    codes = np.arange(count, dtype=np.uint8).view(dtype)
    y, same = compiled(nodes, name, {"y": "FLOAT", "same": name}, tmp_path).run({"x": codes})
    np.testing.assert_array_equal(y, codes.astype(np.float32))
    regular = ~np.isnan(codes.astype(np.float32))
    np.testing.assert_array_equal(
        np.asarray(same).view(np.uint8)[regular], codes.view(np.uint8)[regular]
    )


def test_integers_wrap_and_floats_are_cut(tmp_path: Path) -> None:
    nodes, outputs = [], {}
    for name in INTEGERS:
        back = "INT32" if name in ("INT4", "UINT4") else name
        nodes.append(helper.make_node("Cast", ["x"], [name], to=number(name)))
        nodes.append(helper.make_node("Cast", [name], [f"{name}.out"], to=number(back)))
        outputs[f"{name}.out"] = back
    nodes.append(helper.make_node("Cast", ["x"], ["bool"], to=TensorProto.BOOL))
    outputs["bool"] = "BOOL"
    folders = {source: tmp_path / source for source in ("INT64", "FLOAT")}
    wide = np.array([0, 1, -1, 127, 128, 255, 256, -129, 7, 8, -9, 2**31, -(2**40) + 5])
    for source, folder in folders.items():
        folder.mkdir()
        x = wide if source == "INT64" else np.array([0, 0.9, -0.9, 100.7, -7.5, 6.2], np.float32)
        results = compiled(nodes, source, outputs, folder).run({"x": x})
        for name, result in zip([*INTEGERS, "BOOL"], results, strict=True):
            whole = np.trunc(x).astype(np.int64)
            dtype = helper.tensor_dtype_to_np_dtype(number(name))
            wanted = x.astype(bool) if name == "BOOL" else whole.astype(dtype)
            np.testing.assert_array_equal(result, wanted.astype(result.dtype), err_msg=name)


def test_floats_that_are_no_integers_of_32_bits(tmp_path: Path) -> None:
    """Beyond 32 bits, or no numbers, they are the smallest integer, of which narrower types have
    the lower bits; 64 bits and unsigned 32 bits hold more."""
    names = ("INT8", "UINT8", "INT32", "UINT32", "INT64")
    nodes = [helper.make_node("Cast", ["x"], [name], to=number(name)) for name in names]
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 2**31 - 128, 2**32 - 256], np.float32)
    many = np.tile(x, 19)  # as vectors, and the rest
    results = compiled(nodes, "FLOAT", dict(zip(names, names, strict=True)), tmp_path).run([many])
    rows = [np.asarray(y).reshape(19, len(x)) for y in results]
    assert all((row == row[0]).all() for row in rows)
    i8, u8, i32, u32, i64 = (row[0].tolist() for row in rows)
    low = -(2**31)
    assert i32 == [low, low, low, low, low, 2**31 - 128, low]
    assert i8 == [*u8[:5], -128, 0] == [0, 0, 0, 0, 0, -128, 0] and u8[5:] == [128, 0]
    assert u32[3] == 3 * 10**9 and u32[5:] == [2**31 - 128, 2**32 - 256]
    assert i64[3:] == [3 * 10**9, -3 * 10**9, 2**31 - 128, 2**32 - 256]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_constants_that_are_no_integers_of_32_bits(dtype: type) -> None:
    def cast(x: list[float]) -> list[int]:
        constant = from_array(np.array(x, dtype)).cast(TensorProto.UINT32)
        return constant.load().tolist()

    assert cast([np.nan, np.inf, -np.inf, -1, 300.7]) == [1 << 31, 0, 1 << 31, (1 << 32) - 1, 300]
    if dtype != np.float16:
        assert cast([2**32 - 256, 2.0**32, -1e20]) == [2**32 - 256, 0, 1 << 31]


def test_a_double_is_rounded_once(tmp_path: Path) -> None:
    """1 + 2^-11 + 2^-40 is above the middle of two f16, its f32 exactly in the middle."""
    nodes = [helper.make_node("Cast", ["x"], [t], to=number(t)) for t in ("FLOAT16", "BFLOAT16")]
    x = np.array([1 + 2**-11 + 2**-40, 1 + 2**-8 + 2**-40, 1 + 2**-11 - 2**-40, 1e300, -0.0])
    half, bfloat = compiled(
        nodes, "DOUBLE", {"FLOAT16": "FLOAT16", "BFLOAT16": "BFLOAT16"}, tmp_path
    ).run({"x": x})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, x.astype(np.float16))
    expected = np.array([1.0, 1 + 2**-7, 1.0, np.inf, -0.0], np.float32)
    np.testing.assert_array_equal(np.asarray(bfloat).astype(np.float32), expected)
