from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.abq_conv import conv_spec
from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from facts import Facts, after


def conv(
    folder: Path,
    x: str,
    w: str,
    y: str,
    *,
    strides: str = "1, 1",
    pads: str = "1, 1, 1, 1",
    groups: int = 1,
    half: str = "",
) -> tuple[Facts, Unit]:
    unit = Unit(store=WeightStore(folder), target=CpuTarget())
    shape = [int(size) for size in w.split("x")[:-1]]
    unit.store.add("w", np.ones(shape, np.float32))
    rank = len(shape) - 2
    rounded = f', half = "{half}"' if half else ""
    text = f"""func.func @main(%x: tensor<{x}>) -> tensor<{y}> {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<{w}>
      %y = "abq.conv"(%x, %w) {{node = "c", strides = array<i64: {strides}>,
          dilations = array<i64: {", ".join("1" * rank)}>, pads = array<i64: {pads}>,
          groups = {groups} : i64{rounded}, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
          : (tensor<{x}>, tensor<{w}>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""
    return after(text, "direct-conv", unit=unit), unit


def test_planes_are_the_image_with_zeros(tmp_path: Path) -> None:
    facts, unit = conv(tmp_path, "?x3x8x9xf32", "5x3x3x3xf32", "?x5x8x9xf32")
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape)[1:] == [3, 10, 11]
    assert list(op.operands[1].type.shape) == [6 * 3 * 9]  # channels are filled up to a block
    assert not facts("abq.conv") and not facts("linalg.generic")
    (record,) = unit.operations
    assert (record["strategy"], record["n"], record["k"]) == ("direct", 5, 27)
    assert conv_spec(op.opview).name == "direct_conv_n6_w3x3_s1x1_d1x1"
    (planes,) = facts("abq.polyphase")
    assert list(ir.DenseI64ArrayAttr(planes.attributes["before"])) == [1, 1]


def test_strides_cut_planes_into_phases(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "1x5x8x9xf32", "4x5x3x3xf32", "1x4x4x5xf32", strides="2, 2")
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape) == [1, 20, 5, 6]
    (planes,) = facts("abq.polyphase")
    assert list(ir.DenseI64ArrayAttr(planes.attributes["strides"])) == [2, 2]


def test_only_phases_that_are_read_are_planes(tmp_path: Path) -> None:
    facts, _ = conv(
        tmp_path, "1x3x8x9xf32", "4x3x1x1xf32", "1x4x4x5xf32", strides="2, 2", pads="0, 0, 0, 0"
    )
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape) == [1, 3, 4, 5]
    (planes,) = facts("abq.polyphase")
    assert list(ir.DenseI64ArrayAttr(planes.attributes["phases"])) == [1, 1]


def test_an_image_that_needs_no_zeros_is_read_as_it_is(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "1x3x8x9xf32", "4x3x1x1xf32", "1x4x8x9xf32", pads="0, 0, 0, 0")
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape) == [1, 3, 8, 9]
    assert not facts("abq.polyphase")


def test_a_few_channels_are_read_from_the_image(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "1x3x9x9xf32", "9x3x3x3xf32", "1x9x5x5xf32", strides="2, 2")
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape) == [1, 3, 9, 9]
    assert conv_spec(op.opview).name == "direct_conv_n6_w3x3_s2x2_d1x1_c3_of9_p1x1"
    assert not facts("abq.polyphase")


def test_a_weight_is_packed_for_each_layout(tmp_path: Path) -> None:
    # By Winograd's algorithm where strides are 1.
    unit = Unit(store=WeightStore(tmp_path), target=CpuTarget())
    unit.store.add("w", np.ones((32, 32, 3, 3), np.float32))
    x, w, small = "tensor<1x32x9x9xf32>", "tensor<32x32x3x3xf32>", "tensor<1x32x5x5xf32>"
    about = """dilations = array<i64: 1, 1>, pads = array<i64: 1, 1, 1, 1>, groups = 1 : i64,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>"""
    text = f"""func.func @main(%x: {x}) -> ({x}, {small}) {{
      %w = "abq.weight"() {{sym = "w"}} : () -> {w}
      %y = "abq.conv"(%x, %w) {{node = "y", strides = array<i64: 1, 1>, {about}}}
          : ({x}, {w}) -> {x}
      %z = "abq.conv"(%x, %w) {{node = "z", strides = array<i64: 2, 2>, {about}}}
          : ({x}, {w}) -> {small}
      return %y, %z : {x}, {small}
    }}"""
    facts = after(text, "direct-conv", unit=unit)
    for op in facts("abq.direct_conv"):
        symbol = ir.StringAttr(op.operands[1].owner.attributes["sym"]).value
        (size,) = op.operands[1].type.shape
        assert unit.store.get(symbol).shape == (size,) == (conv_spec(op.opview).packed_size,)


def test_sizes_known_at_run_time(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "1x5x?x?xf32", "4x5x3x3xf32", "1x4x?x?xf32", strides="2, 1")
    assert len(facts("abq.direct_conv")) == 1
    assert len(facts("arith.ceildivui")) == 1  # up to a whole number of steps of 2
    assert facts.messages() == ["the model: the input is smaller than the window"] * 2


@pytest.mark.parametrize(
    ("w", "size", "name"),
    [
        ("40x16x3x3xf32", 48 * 16 * 16, "direct_conv_winograd_n40_c16_p1x1"),
        ("16x8x3x3xf32", 16 * 8 * 16, "direct_conv_winograd_n16_c8_p1x1"),
        ("33x512x3x3xf32", 48 * 512 * 16, "direct_conv_winograd_n33_c512_p1x1"),
        ("40x513x3x3xf32", 40 * 513 * 9, "direct_conv_n8_w3x3_s1x1_d1x1"),
        # Blocks of which less is filled, and transforms for few products.
        ("20x12x3x3xf32", 20 * 12 * 9, "direct_conv_n4_w3x3_s1x1_d1x1"),
        ("8x256x3x3xf32", 8 * 256 * 9, "direct_conv_n8_w3x3_s1x1_d1x1"),
        ("24x4x3x3xf32", 24 * 4 * 9, "direct_conv_n8_w3x3_s1x1_d1x1"),
        ("40x16x3x1xf32", 40 * 16 * 3, "direct_conv_n8_w3x1_s1x1_d1x1"),
    ],
)
def test_many_channels_take_winograds_algorithm(
    tmp_path: Path, w: str, size: int, name: str
) -> None:
    n, c, _, columns = w.split("x")[:4]
    pads = "1, 1, 1, 1" if columns == "3" else "1, 0, 1, 0"
    facts, _ = conv(tmp_path, f"1x{c}x20x20xf32", w, f"1x{n}x20x20xf32", pads=pads)
    (op,) = facts("abq.direct_conv")
    assert conv_spec(op.opview).name == name
    assert list(op.operands[1].type.shape) == [size]


def test_one_axis(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "1x3x20xf32", "4x3x5xf32", "1x4x20xf32", strides="1", pads="2, 2")
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape) == [1, 3, 1, 24]
    assert list(op.results[0].type.shape) == [1, 4, 20]


@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_weights_in_16_bits_are_widened(tmp_path: Path, element: str) -> None:
    facts, unit = conv(tmp_path, "1x3x8x9xf32", f"5x3x3x3x{element}", "1x5x8x9xf32")
    (op,) = facts("abq.direct_conv")
    assert str(op.operands[1].type) == f"tensor<{6 * 3 * 9}xf32>"
    assert unit.operations[0]["weight"] == "f32"


def test_groups_stay_float(tmp_path: Path) -> None:
    facts, unit = conv(tmp_path, "1x4x8x8xf32", "8x2x3x3xf32", "1x8x8x8xf32", groups=2)
    assert len(facts("abq.direct_conv")) == 1
    assert [entry["node"] for entry in unit.floats] == ["c"] and not unit.operations


@pytest.mark.parametrize(
    ("x", "w", "y", "pads"),
    [
        ("1x3x3x3xf32", "4x3x3x3xf32", "1x4x3x3xf32", "1, 1, 1, 1"),  # few outputs
        ("1x3x8x8x8xf32", "4x3x1x1x1xf32", "1x4x8x8x8xf32", "0, 0, 0, 0, 0, 0"),
    ],
)
def test_others_are_left_alone(tmp_path: Path, x: str, w: str, y: str, pads: str) -> None:
    strides = ", ".join("1" * (len(w.split("x")) - 3))
    facts, _ = conv(tmp_path, x, w, y, pads=pads, strides=strides)
    assert len(facts("abq.conv")) == 1 and not facts("abq.direct_conv")


@pytest.mark.parametrize(
    ("w", "groups", "planes", "size"),
    [
        ("40x16x3x3xf32", 1, [1, 8, 14, 13], 40 * 8 * 9),  # no transform
        ("6x5x1x1xf32", 2, [1, 6, 14, 13], 2 * 4 * 3),
    ],
)
def test_in_bf16_planes_are_of_pairs(
    tmp_path: Path, w: str, groups: int, planes: list[int], size: int
) -> None:
    n, c, window, _ = map(int, w.split("x")[:4])
    rows = 15 - window
    image = f"1x{c * groups}x12x11xf32"
    facts, unit = conv(
        tmp_path, image, w, f"1x{n}x{rows}x{rows - 1}xf32", groups=groups, half="bf16"
    )
    (op,) = facts("abq.direct_conv")
    assert list(op.operands[0].type.shape) == planes
    assert list(op.operands[1].type.shape) == [size]
    assert all(str(value.type.element_type) == "i32" for value in list(op.operands)[:2])
    assert conv_spec(op.opview).name.startswith("direct_conv_bf16_n")
    assert len(facts("abq.pair_planes")) == 1 and not facts("abq.polyphase") and not unit.floats
    (record,) = unit.operations
    assert (record["weight"], record["activation"]) == ("bf16", "bf16")
    assert record["bytes"] == 4 * size


@pytest.mark.parametrize(
    ("x", "w", "y", "pads", "before"),
    [
        ("1x4x8x9xf32", "4x1x3x3xf32", "1x4x8x9xf32", "1, 1, 1, 1", [1, 1]),
        ("1x4x20xf32", "4x1x5xf32", "1x4x20xf32", "3, 1", [0, 3]),
    ],
)
def test_channels_for_themselves_are_read_from_the_image(
    tmp_path: Path, x: str, w: str, y: str, pads: str, before: list[int]
) -> None:
    strides = ", ".join("1" * (len(w.split("x")) - 3))
    facts, _ = conv(tmp_path, x, w, y, strides=strides, pads=pads, groups=4)
    (op,) = facts("abq.direct_conv")
    assert conv_spec(op.opview).depthwise and list(conv_spec(op.opview).before) == before
    assert not facts("abq.polyphase")
