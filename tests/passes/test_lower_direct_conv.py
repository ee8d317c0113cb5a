from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.context import make_context
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
        (2, 49, (2, 1), 2, [2, 1]),
        (2, 80, (3, 1), 1, [4, 1]),
        (16, 49, (2, 1), 2, [4, 2]),
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
            found = parts_for_threads(index(threads), known, blocks, tiles=index(tiles))
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
