"""Normalizations are recognized, and only those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes.infrastructure import Unit
from facts import Facts, after
from test_fuse_attention import in_model

TIDY = "func.func(canonicalize,cse)"
X = "tensor<?x?x96xf32>"
ROW = "tensor<?x?x1xf32>"
VECTOR = "tensor<96xf32>"
INVERSE = """%3 = math.sqrt %2 : f32
      %4 = arith.divf %one, %3 : f32
      %5 = arith.mulf %i, %4 : f32"""
AFFINE = """%6 = arith.mulf %5, %w : f32
      %y = arith.addf %6, %c : f32"""


def loop(name: str, result: str, operands: dict[str, str], types: list[str], body: str) -> str:
    """A linalg.generic over rows; `operands` maps values to their indexing maps."""
    names = ", ".join(list(operands)[:-1])
    kinds = ["parallel", "parallel", "reduction" if operands[list(operands)[-1]] == "#row"
             else "parallel"]  # fmt: skip
    return f"""%{name} = linalg.generic {{indexing_maps = [{", ".join(operands.values())}],
      iterator_types = [{", ".join(f'"{kind}"' for kind in kinds)}]}}
      ins({names} : {", ".join(types)}) outs({list(operands)[-1]} : {result}) {{
      {body}
    }} -> {result}"""


def norm(
    *,
    layer: bool = True,
    inverse: str = INVERSE,
    affine: str = AFFINE,
    count: str = "96.0",
    returned: str = "%y",
    before: str = "",
) -> str:
    reduce = "^bb0(%i: f32, %o: f32):\n"
    mean = loop("s", ROW, {"%x": "#id", "%none": "#row"}, [X],
                reduce + "%1 = arith.addf %i, %o : f32\n linalg.yield %1 : f32")  # fmt: skip
    center = loop("d", X, {"%x": "#id", "%s": "#row", "%e": "#id"}, [X, ROW],
                  """^bb0(%i: f32, %j: f32, %o: f32):
      %1 = arith.divf %j, %n : f32
      %2 = arith.subf %i, %1 : f32
      linalg.yield %2 : f32""")  # fmt: skip
    c = "%d" if layer else "%x"
    squares = loop("q", ROW, {c: "#id", "%none": "#row"}, [X],
                   reduce + """%1 = arith.mulf %i, %i : f32
      %2 = arith.addf %1, %o : f32
      linalg.yield %2 : f32""")  # fmt: skip
    final = loop("y", X, {c: "#id", "%q": "#row", "%weight": "#vec", "%bias": "#vec", "%e": "#id"},
                 [X, ROW, VECTOR, VECTOR], f"""^bb0(%i: f32, %j: f32, %w: f32, %c: f32, %o: f32):
      %1 = arith.divf %j, %n : f32
      %2 = arith.addf %1, %eps : f32
      {inverse}
      {affine}
      linalg.yield %y : f32""")  # fmt: skip
    add = loop("x", X, {"%a": "#id", "%r": "#id", "%e": "#id"}, [X, X],
               """^bb0(%i: f32, %j: f32, %o: f32):
      %1 = arith.addf %i, %j : f32
      linalg.yield %1 : f32""")  # fmt: skip
    results = ", ".join([X] * len(returned.split(",")))
    return f"""
#id = affine_map<(d0, d1, d2) -> (d0, d1, d2)>
#row = affine_map<(d0, d1, d2) -> (d0, d1, 0)>
#vec = affine_map<(d0, d1, d2) -> (d2)>
func.func @main(%a: {X}, %r: {X}, %weight: {VECTOR}, %bias: {VECTOR}, %b: index, %m: index)
    -> ({results}) {{
  %zero = arith.constant 0.0 : f32
  %one = arith.constant 1.0 : f32
  %n = arith.constant {count} : f32
  %eps = arith.constant 1.0e-5 : f32
  %e = tensor.empty(%b, %m) : {X}
  %er = tensor.empty(%b, %m) : {ROW}
  %none = linalg.fill ins(%zero : f32) outs(%er : {ROW}) -> {ROW}
  {add}
  {before}
  {mean + center if layer else ""}
  {squares}
  {final}
  return {returned} : {results}
}}"""


def fused(text: str) -> Facts:
    return after(text, "fuse-norm", TIDY)


@pytest.mark.parametrize("layer", [True, False])
def test_all_loops_become_one_operation(layer: bool) -> None:
    facts = fused(norm(layer=layer))
    (op,) = facts("abq.norm")
    assert not facts("linalg.generic")
    assert op.attributes["kind"].value == ("layer" if layer else "rms")
    assert abs(op.attributes["epsilon"].value - 1e-5) < 1e-9
    assert [operand.arg_number for operand in op.operands] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("affine", "operands"),
    [
        ("%y = arith.mulf %w, %5 : f32", [0, 1, 2]),
        ("%y = arith.addf %c, %5 : f32", [0, 1, 3]),
        ("%y = arith.addf %5, %zero : f32", [0, 1]),
    ],
)
def test_weight_and_bias_may_be_missing(affine: str, operands: list[int]) -> None:
    text = norm(affine=affine)
    if len(operands) == 2:
        text = text.replace(affine, "").replace("yield %y", "yield %5")
    facts = fused(text)
    (op,) = facts("abq.norm")
    assert [operand.arg_number for operand in op.operands] == operands


@pytest.mark.parametrize(
    "inverse",
    [
        "%3 = math.rsqrt %2 : f32\n %5 = arith.mulf %3, %i : f32",
        "%3 = math.sqrt %2 : f32\n %5 = arith.divf %i, %3 : f32",
    ],
)
def test_ways_to_divide_by_the_root(inverse: str) -> None:
    assert len(fused(norm(inverse=inverse))("abq.norm")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"count": "95.0"},
        {"inverse": "%3 = math.exp %2 : f32\n %5 = arith.mulf %i, %3 : f32"},
    ],
)
def test_what_is_no_normalization_stays(change: dict[str, str]) -> None:
    assert not fused(norm(**change))("abq.norm")


def test_later_readers_of_the_sum_get_it_from_the_norm() -> None:
    facts = fused(norm(layer=False, returned="%y, %x"))
    (op,) = facts("abq.norm")
    (ret,) = facts("func.return")
    assert [value.owner.operation for value in ret.operands] == [op, op]
    assert not facts("linalg.generic")


def test_a_sum_that_is_read_before_is_no_part_of_the_norm() -> None:
    early = f'%early = "abq.hadamard"(%x) {{block = 12 : i64}} : ({X}) -> {X}'
    facts = fused(norm(before=early, returned="%y, %early"))
    (op,) = facts("abq.norm")
    assert len(op.operands) == 3
    assert len(facts("linalg.generic")) == 1


@pytest.mark.parametrize(("returned", "flags"), [("%y", "rwb"), ("%y, %x", "rkwb")])
def test_lowering_is_one_launch(returned: str, flags: str) -> None:
    unit = Unit(target=CudaTarget.named("sm_80"))
    text = norm(returned=returned)
    facts = after(text, "fuse-norm", TIDY, "resolve-dims", "lower-abq", unit=unit)
    assert facts.calls() == [f"norm_layer_96_{flags}"]


def test_softmax() -> None:
    text = f"""func.func @main(%x: {X}) -> {X} {{
      %y = "abq.softmax"(%x) : ({X}) -> {X}
      return %y : {X}
    }}"""
    assert after(text, "lower-abq", unit=Unit(target=CudaTarget.named("sm_80"))).calls() == [
        "softmax"
    ]


def test_minilm(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Of 61 loops 12 are left: sizes and masks, three GELUs, and the mean over tokens."""
    facts = in_model(real_model("minilm-l3"), tmp_path, "fuse-norm", TIDY)
    norms = facts("abq.norm")
    assert [len(op.operands) for op in norms] == [3] + [4] * 6
    assert len(facts("linalg.generic")) <= 12


@pytest.mark.slow
def test_smollm2(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    facts = in_model(real_model("smollm2"), tmp_path, "fuse-norm", TIDY)
    assert [len(op.operands) for op in facts("abq.norm")] == [2] + [3] * 60
