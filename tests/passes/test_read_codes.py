from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.build import resolve_target
from abqc.dialects.formats import parse_scheme
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from abqc.passes.quantization.encoding import Encoding
from facts import Facts, after

IMAGE = "tensor<?x8x?x?xf32>"
HERE = "affine_map<(b, c, y, x) -> (b, c, y, x)>"
DECODE = """%1 = arith.extui %code : i8 to i32
  %2 = arith.subi %1, %three : i32
  %3 = arith.sitofp %2 : i32 to f32
  %4 = arith.mulf %3, %half : f32
  linalg.yield %4 : f32"""
MAKE = """%0 = arith.fptosi %a : f32 to i32
  %code = arith.trunci %0 : i32 to i8
"""


def loop(name: str, source: str, type_: str, argument: str, body: str) -> str:
    return f"""%{name} = linalg.generic {{indexing_maps = [{HERE}, {HERE}],
        iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins({source} : {type_}) outs(%e : {IMAGE}) {{
    ^bb0({argument}, %out: f32):
      {body}
    }} -> {IMAGE}
    """


def read(
    folder: Path,
    decoding: str,
    *,
    zero: int = 3,
    scheme: str = "a8:tensor:asym",
    target: object = None,
    reader: str = "",
) -> Facts:
    """A convolution of %d, which `decoding` makes of %x, f32, or %q, codes."""
    unit = Unit(store=WeightStore(folder), target=target or CpuTarget())  # type: ignore[arg-type]
    unit.store.add("w", np.ones((16, 8, 3, 3), np.float32))
    encoding = Encoding("w", parse_scheme("w8"))
    unit.encodings[encoding.symbol] = encoding
    groups = parse_scheme("w8").n_groups(72)
    weight = f'tensor<16x8x3x3x!abq.code<"{parse_scheme("w8").text}">>'
    codes, scales = f'tensor<?x8x?x?x!abq.code<"{scheme}">>', f"tensor<16x{groups}xf16>"
    text = f"""func.func @main(%x: {IMAGE}, %q: tensor<?x8x?x?xi8>, %e: {IMAGE})
        -> (tensor<?x16x?x?xf32>, {IMAGE}) {{
      %three = arith.constant 3 : i32
      %half = arith.constant 0.5 : f32
      %s = arith.constant dense<0.5> : tensor<1xf32>
      %z = arith.constant dense<{zero}> : tensor<1xi32>
      %w = "abq.weight"() {{sym = "{encoding.symbol}"}} : () -> {weight}
      %ws = "abq.weight"() {{sym = "s"}} : () -> {scales}
      {decoding}
      %c, %cs, %cz = "abq.quantize"(%d, %s, %z) {{operandSegmentSizes = array<i32: 1, 1, 1>}}
        : ({IMAGE}, tensor<1xf32>, tensor<1xi32>) -> ({codes}, tensor<1xf32>, tensor<1xi32>)
      %y = "abq.conv"(%c, %w, %cs, %cz, %ws) {{node = "c", strides = array<i64: 1, 1>,
          dilations = array<i64: 1, 1>, pads = array<i64: 1, 1, 1, 1>, groups = 1 : i64,
          operandSegmentSizes = array<i32: 1, 1, 0, 1, 1, 1, 0>}}
        : ({codes}, {weight}, tensor<1xf32>, tensor<1xi32>, {scales}) -> tensor<?x16x?x?xf32>
      {reader or "%r = arith.addf %e, %e : " + IMAGE}
      return %y, %r : tensor<?x16x?x?xf32>, {IMAGE}
    }}"""
    return after(text, "read-codes", "func.func(canonicalize,cse)", unit=unit)


STORED = loop("d", "%q", "tensor<?x8x?x?xi8>", "%code: i8", DECODE)
MADE = loop("d", "%x", IMAGE, "%a: f32", MAKE + DECODE)


def quantized(facts: Facts) -> str:
    (op,) = facts("abq.quantize")
    return str(op.opview.x.type)


def test_stored_codes_are_read(tmp_path: Path) -> None:
    facts = read(tmp_path, STORED)
    assert quantized(facts) == "tensor<?x8x?x?xi8>" and not facts("linalg.generic")


def test_loops_store_codes(tmp_path: Path) -> None:
    facts = read(tmp_path, MADE)
    (op,) = facts("linalg.generic")
    assert quantized(facts) == str(op.results[0].type) == "tensor<?x8x?x?xi8>"


def test_other_loops_decode_them(tmp_path: Path) -> None:
    twice = "%t = arith.addf %v, %v : f32\nlinalg.yield %t : f32"
    facts = read(tmp_path, MADE, reader=loop("r", "%d", IMAGE, "%v: f32", twice))
    made, decoded, _ = facts("linalg.generic")
    assert quantized(facts) == "tensor<?x8x?x?xi8>"
    assert decoded.operands[0] == made.results[0]


@pytest.mark.parametrize(
    "change",
    [
        {"zero": 4},
        {"scheme": "a8:tensor:sym"},
        {"scheme": "a7:tensor:asym"},
        {"target": resolve_target("sm_80")},
        {"reader": f'%r = "abq.softmax"(%d) : ({IMAGE}) -> {IMAGE}'},
    ],
)
def test_others_stay(tmp_path: Path, change: dict[str, object]) -> None:
    assert quantized(read(tmp_path, MADE, **change)) == IMAGE  # type: ignore[arg-type]
