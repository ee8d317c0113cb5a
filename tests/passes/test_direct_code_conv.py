from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.formats import parse_scheme
from abqc.dialects.weight_store import WeightStore
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit
from abqc.passes.quantization.encoding import Encoding
from facts import Facts, after


def conv(
    folder: Path,
    x: str,
    w: str,
    y: str,
    *,
    strides: str = "1, 1",
    pads: str = "1, 1, 1, 1",
    weight: str = "w8",
    activation: str = "a8:image",
    given: bool = False,
    passes: str = "direct-code-conv",
) -> tuple[Facts, Unit]:
    """A convolution of codes; with `given`, its activations have a scale of the model's own."""
    unit = Unit(store=WeightStore(folder), target=CpuTarget())
    shape = [int(size) for size in w.split("x")]
    k = int(np.prod(shape[1:]))
    unit.store.add("w", np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    scheme = parse_scheme(weight)
    encoding = Encoding("w", scheme)
    unit.encodings[encoding.symbol] = encoding
    codes, groups = f'!abq.code<"{scheme.text}">', scheme.n_groups(k)
    samples = "1" if given else x.split("x")[0]
    a_codes = f'tensor<{x}x!abq.code<"{parse_scheme(activation).text}">>'
    types = f"tensor<{samples}xf32>, tensor<{samples}xi32>"
    scales = "%s, %z" if given else ""
    rank = len(shape) - 2
    steps = ", ".join("1" * rank)
    text = f"""func.func @main(%x: tensor<{x}xf32>) -> tensor<{y}xf32> {{
      %s = arith.constant dense<0.5> : tensor<1xf32>
      %z = arith.constant dense<3> : tensor<1xi32>
      %w = "abq.weight"() {{sym = "{encoding.symbol}"}} : () -> tensor<{w}x{codes}>
      %ws = "abq.weight"() {{sym = "s"}} : () -> tensor<{shape[0]}x{groups}xf16>
      %q, %qs, %qz = "abq.quantize"(%x{", " * given}{scales})
          {{operandSegmentSizes = array<i32: 1, {int(given)}, {int(given)}>}}
          : (tensor<{x}xf32>{(", " + types) * given}) -> ({a_codes}, {types})
      %y = "abq.conv"(%q, %w, %qs, %qz, %ws) {{node = "c", strides = array<i64: {strides}>,
          dilations = array<i64: {steps}>, pads = array<i64: {pads}>, groups = 1 : i64,
          operandSegmentSizes = array<i32: 1, 1, 0, 1, 1, 1, 0>}}
          : ({a_codes}, tensor<{w}x{codes}>, {types}, tensor<{shape[0]}x{groups}xf16>)
          -> tensor<{y}xf32>
      return %y : tensor<{y}xf32>
    }}"""
    return after(text, *passes.split(","), unit=unit), unit


def test_an_image_is_measured_quantized_and_convolved(tmp_path: Path) -> None:
    facts, unit = conv(tmp_path, "2x5x8x9", "20x5x3x3", "2x20x8x9")
    assert len(facts("abq.measure")) == 1
    (planes,) = facts("abq.pack_planes")
    (op,) = facts("abq.code_conv")
    assert op.operands[0] == planes.results[0] and not facts("abq.conv")
    (record,) = unit.operations
    assert (record["strategy"], record["n"], record["k"]) == ("int8-direct", 20, 45)
    # Two panels of 16 channels of 2 blocks at 9 taps, filled up to 5 units, and scales of 16 bits.
    assert record["bytes"] == 2 * (16 * 4 * 20 + 64)
    assert len(unit.kernels) == 2


def test_a_scale_of_the_model_is_not_measured(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "2x5x8x9", "20x5x3x3", "2x20x8x9", activation="a8:tensor", given=True)
    assert not facts("abq.measure") and len(facts("abq.code_conv")) == 1


def test_readers_of_one_image_share_its_planes_by_their_kernel(tmp_path: Path) -> None:
    _, one = conv(tmp_path / "a", "1x8x8x9", "4x8x1x1", "1x4x8x9", pads="0, 0, 0, 0")
    _, other = conv(tmp_path / "b", "1x16x8x9", "32x16x3x3", "1x32x8x9", weight="w4")
    shared = set(one.kernels) & set(other.kernels)
    assert shared == {"int8_conv_measured_planes_uint8_s1x1_p1x1"}


def test_sizes_known_at_run_time(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "?x3x?x?", "4x3x3x3", "?x4x?x?", strides="2, 1")
    assert len(facts("abq.code_conv")) == 1
    assert facts.messages() == ["the model: the input is smaller than the window"] * 2


def test_one_axis(tmp_path: Path) -> None:
    facts, _ = conv(tmp_path, "1x3x20", "4x3x5", "1x4x20", strides="1", pads="2, 2")
    (op,) = facts("abq.code_conv")
    assert list(op.results[0].type.shape) == [1, 4, 20]


@pytest.mark.parametrize(
    ("x", "w", "y", "weight", "why"),
    [
        ("1x3x3x3", "4x3x3x3", "1x4x3x3", "w8", "16 outputs"),
        ("1x3x8x8x8", "4x3x1x1x1", "1x4x8x8x8", "w8", "two axes"),
        ("1x64x8x8", "4x64x3x3", "1x4x8x8", "w4:asym", "several groups"),
        ("1x64x8x8", "4x64x3x3", "1x4x8x8", "wnf4", "integers"),
    ],
)
def test_the_reason_for_patches_is_listed(
    tmp_path: Path, x: str, w: str, y: str, weight: str, why: str
) -> None:
    spatial = len(w.split("x")) - 2
    strides, pads = ", ".join("1" * spatial), "0, " * (2 * spatial - 1) + "0"
    pads = "1, 1, 1, 1" if w.endswith("3x3") else pads
    facts, _ = conv(tmp_path, x, w, y, weight=weight, strides=strides, pads=pads)
    (op,) = facts("abq.conv")
    assert why in op.attributes["patches"].value and not facts("abq.code_conv")


@pytest.mark.parametrize("n", [24, 512])
def test_the_cost_model_may_prefer_another_strategy_over_patches(tmp_path: Path, n: int) -> None:
    sizes = "1x512x32x32", f"{n}x512x3x3", f"1x{n}x30x30"
    formats = {"weight": "w1:channel", "activation": "a1:image:sym"}
    facts, _ = conv(tmp_path, *sizes, **formats, pads="0, 0, 0, 0")
    reasons = [op.attributes["patches"].value for op in facts("abq.conv")]
    bitplane = "strategy 'bitplane' over them is faster by the cost model"
    assert reasons == ([bitplane] if n == 512 else [])


def test_patches_of_one_bit_have_no_code_for_the_zeros_around_an_image(tmp_path: Path) -> None:
    sizes = "1x512x32x32", "512x512x3x3", "1x512x32x32"
    facts, _ = conv(tmp_path, *sizes, weight="w1:channel", activation="a1:image:sym")
    assert len(facts("abq.code_conv")) == 1


def test_the_product_of_patches_keeps_the_reason(tmp_path: Path) -> None:
    passes = "direct-code-conv,decompose-conv,pack-layouts"
    facts, unit = conv(tmp_path, "1x3x3x3", "4x3x3x3", "1x4x3x3", passes=passes)
    assert len(facts("abq.matmul")) == 1
    (record,) = unit.operations
    assert (record["strategy"], record["patches"]) == (
        "int8",
        "vectors take 16 outputs of a channel",
    )


def test_patches_of_one_bit_have_no_zeros(tmp_path: Path) -> None:
    """No code of one symmetric bit stands for the zeros around an image: they would count as 1."""
    options = {"activation": "a1:image:sym", "passes": "decompose-conv"}
    with pytest.raises(RecipeError, match=r"zeros around an image .node 'c'.*a1:asym"):
        conv(tmp_path, "2x5x8x9", "20x5x3x3", "2x20x8x9", **options)
    facts, _ = conv(tmp_path / "inside", "2x5x8x9", "20x5x3x3", "2x20x6x7", pads="0, 0, 0, 0",
                    **options)  # fmt: skip
    assert facts("abq.matmul")
