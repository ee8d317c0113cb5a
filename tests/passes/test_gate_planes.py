"""Products with gates of channels go into what measures and quantizes images."""

import pytest
from abqc.codegen.cpu.int8_conv.strategy import Int8Conv
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.code_conv_spec import CodeConvSpec
from abqc.dialects.formats import parse_scheme
from abqc.dialects.matmul_spec import MatmulSpec
from abqc.passes.infrastructure import Unit
from facts import Facts, after, maker

IMAGE, GATES = "tensor<?x8x?x40xf32>", "tensor<?x8x1x1xf32>"
KERNEL = Int8Conv().planes_kernel(
    CodeConvSpec(MatmulSpec(16, 8, parse_scheme("w8"), parse_scheme("a8")), (1, 1), (1, 1), (1, 1)),
    measured=True,
)


def gated(
    product: str = "%a, %sum", map_: str = "(b, c, 0, 0)", gates: str = GATES, read: bool = False
) -> Facts:
    """Of an image times something; `read`: which is also a result."""
    unit = Unit(target=CpuTarget(), kernels={KERNEL.name: KERNEL})
    packed = f'tensor<?x?x!abq.packed<"{KERNEL.name}">>'
    more = (", %h", f", {IMAGE}") if read else ("", "")
    return after(
        f"""func.func @main(%x: {IMAGE}, %s: {gates}, %h0: index) -> ({packed}{more[1]}) {{
      %one = arith.constant 1.0 : f32
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %b = tensor.dim %x, %c0 : {IMAGE}
      %e = tensor.empty(%b, %h0) : {IMAGE}
      %h = linalg.generic {{indexing_maps = [
          affine_map<(b, c, h, w) -> (b, c, h, w)>, affine_map<(b, c, h, w) -> {map_}>,
          affine_map<(b, c, h, w) -> (b, c, h, w)>],
          iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
          ins(%x, %s : {IMAGE}, {gates}) outs(%e : {IMAGE}) {{
      ^bb0(%a: f32, %g: f32, %out: f32):
        %sum = arith.addf %g, %one : f32
        %product = arith.mulf {product} : f32
        linalg.yield %product : f32
      }} -> {IMAGE}
      %scale, %zero = "abq.measure"(%h) {{format = "a8:image:asym",
          operandSegmentSizes = array<i32: 1, 0>}} : ({IMAGE}) -> (tensor<?xf32>, tensor<?xi32>)
      %q = "abq.pack_planes"(%h, %scale, %zero, %c1, %h0, %c1, %h0) {{channels = 8 : i64,
          kernel = "{KERNEL.name}", left = 0 : i64, phases = 1 : i64, top = 0 : i64,
          operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0>}}
          : ({IMAGE}, tensor<?xf32>, tensor<?xi32>, index, index, index, index) -> {packed}
      return %q{more[0]} : {packed}{more[1]}
    }}""",
        "gate-planes",
        unit=unit,
    )


@pytest.mark.parametrize("product", ["%a, %sum", "%sum, %a"])
def test_measures_and_packs_multiply(product: str) -> None:
    facts = gated(product)
    (measure,), (pack,), (gate,) = map(facts, ("abq.measure", "abq.pack_planes", "linalg.generic"))
    for op in (measure, pack):
        assert maker(op.operands[0]) == "argument"
        assert op.operands[len(op.operands) - 1].owner == gate
    assert str(gate.results[0].type) == "tensor<?x8xf32>"
    assert [op.operation.name for op in gate.regions[0].blocks[0].operations] == [
        "arith.addf",
        "linalg.yield",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"read": True},
        {"product": "%sum, %sum"},
        {"product": "%a, %a"},
        {"map_": "(b, c, w)", "gates": "tensor<?x8x40xf32>"},
    ],
    ids=["read elsewhere", "of the gate alone", "a square", "not of channels"],
)
def test_other_loops_stay(changes: dict[str, object]) -> None:
    facts = gated(**changes)  # type: ignore[arg-type]
    assert len(facts("linalg.generic")) == 1
    assert all(op.operands[0].owner == facts("linalg.generic")[0] for op in facts("abq.measure"))
