from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.context import make_context
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.mlir import func, ir
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from abqc.passes.lowering.direct_conv import parts_for_threads
from abqc.passes.resolve_dims import index
from facts import after


@pytest.mark.parametrize(
    ("threads", "tiles", "parts", "blocks", "expected"),
    [
        (1, 49, (1, 1), 1, [1, 1]),
        (2, 49, (1, 1), 1, [2, 1]),
        (2, 16, (1, 1), 2, [1, 2]),
        (2, 12, (1, 1), 1, [2, 1]),
        (4, 12, (1, 1), 1, [2, 1]),
        (2, 49, (2, 1), 2, [2, 1]),
        (2, 80, (3, 1), 1, [4, 1]),
        (16, 49, (2, 1), 2, [8, 2]),
        (32, 49, (2, 1), 2, [9, 2]),
        (2, 0, (0, 1), 1, [0, 1]),
    ],
)
def test_threads_have_equal_shares(
    threads: int,
    tiles: int,
    parts: tuple[int, int],
    blocks: int,
    expected: list[int],
) -> None:
    with make_context(), ir.Location.unknown():
        module, type_ = ir.Module.create(), ir.IndexType.get()
        with ir.InsertionPoint(module.body):
            main = func.FuncOp("main", ir.FunctionType.get([], [type_] * 2))
        with ir.InsertionPoint(main.add_entry_block()):
            known = [index(size) for size in parts]
            found = parts_for_threads(index(threads), known, index(blocks), tiles=index(tiles))
            func.ReturnOp(found)
        text = str(module)
    facts = after(text, "canonicalize")
    (returned,) = facts("func.return")
    constants = [value.owner.attributes["value"] for value in returned.operands]
    assert [ir.IntegerAttr(constant).value for constant in constants] == expected


def test_winograds_kernels_get_their_parts(tmp_path: Path) -> None:
    """Two of them, for which the host asks once on how many threads it runs."""
    unit = Unit(store=WeightStore(tmp_path), target=CpuTarget())
    unit.store.add("w", np.ones((64, 64, 3, 3), np.float32))
    image = "tensor<1x64x14x14xf32>"
    conv = f"""node = "c", strides = array<i64: 1, 1>, dilations = array<i64: 1, 1>,
        pads = array<i64: 1, 1, 1, 1>, groups = 1 : i64,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
        : ({image}, tensor<64x64x3x3xf32>) -> {image}"""
    text = f"""func.func @main(%x: {image}) -> {image} {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<64x64x3x3xf32>
      %y = "abq.conv"(%x, %w) {{{conv}
      %z = "abq.conv"(%y, %w) {{{conv}
      return %z : {image}
    }}"""
    facts = after(text, "direct-conv", "lower-abq", unit=unit)
    kernel = "direct_conv_winograd_n64_c64_p1x1"
    assert facts.calls() == ["abqc_rt_threads", kernel, kernel]
    assert len(facts("func.call")[-1].operands) == 1 + 4 + 11


# Of 32 to 64 channels with a window of 3 x 3 and strides of 2.
FORM = "direct_conv_n8_w3x3_s2x2_d1x1"


@pytest.mark.parametrize(
    ("image", "outputs", "kernels"),
    [
        ("1x32x12x8", "1x64x6x4", [f"{FORM}_patches"]),
        ("1x32x32x32", "1x64x16x16", [FORM]),  # their rows fill vectors
        ("?x32x?x?", "?x64x?x?", [f"{FORM}_patches", FORM]),
    ],
)
def test_small_images_take_patches(
    tmp_path: Path, image: str, outputs: str, kernels: list[str]
) -> None:
    """Where sizes are not known, the host chooses."""
    unit = Unit(store=WeightStore(tmp_path), target=CpuTarget())
    unit.store.add("w", np.ones((64, 32, 3, 3), np.float32))
    image, outputs = (f"tensor<{shape}xf32>" for shape in (image, outputs))
    text = f"""func.func @main(%x: {image}) -> {outputs} {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<64x32x3x3xf32>
      %y = "abq.conv"(%x, %w) {{node = "c", strides = array<i64: 2, 2>,
        dilations = array<i64: 1, 1>, pads = array<i64: 1, 1, 1, 1>, groups = 1 : i64,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
        : ({image}, tensor<64x32x3x3xf32>) -> {outputs}
      return %y : {outputs}
    }}"""
    facts = after(text, "direct-conv", "lower-abq", unit=unit)
    assert [name for name in facts.calls() if name.startswith("direct_conv")] == kernels
    assert {name for name in unit.kernels if name.startswith("direct_conv")} == set(kernels)
    assert len(facts("scf.if")) == len(kernels) - 1


@pytest.mark.parametrize(
    ("spec", "size", "pay"),
    [
        (ConvSpec(1, 64, 32, (3, 3), (2, 2), (1, 1)), (6, 4, 5), True),
        (ConvSpec(1, 32, 16, (3, 3), (2, 2), (1, 1)), (12, 8, 9), False),  # copies take as much
        (ConvSpec(1, 512, 256, (3, 3), (2, 2), (1, 1)), (7, 7, 8), True),
        (ConvSpec(1, 512, 256, (1, 1), (2, 2), (1, 1)), (7, 7, 7), False),  # a pixel beside a tile
        (ConvSpec(1, 512, 256, (1, 1), (2, 2), (1, 1)), (4, 5, 5), True),
    ],
)
def test_patches_pay_where_vectors_are_not_filled(
    spec: ConvSpec, size: tuple[int, int, int], pay: bool
) -> None:
    assert spec.may_take_patches and spec.patches_pay(*size) is pay


def test_which_convolutions_may_take_patches() -> None:
    spec = ConvSpec(1, 64, 32, (3, 3), (2, 2), (1, 1))
    assert replace(spec, channels=606).may_take_patches  # 12 outputs of an index
    for changed in (
        replace(spec, channels=607),
        replace(spec, groups=2),
        replace(spec, outputs=15),
        replace(spec, outputs=18),  # of blocks of 6
        replace(spec, weights_by_sample=True),
        replace(spec, strides=(1, 1)),  # Winograd's algorithm
        replace(spec, strides=(1, 1), window=(1, 1)),
    ):
        assert not changed.may_take_patches
