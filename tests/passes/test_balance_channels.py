"""Rows come to their products divided by factors; weights have them, and outputs stay."""

from pathlib import Path

import numpy as np
import pytest
import small_transformers as small
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.pipeline import stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.weight_store import WeightStore
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline, walk
from abqc.passes.quantization.calibrated import balance_symbol
from abqc.passes.quantization.product_encodings import matmul_encoding
from facts import Facts, after, maker
from test_rotate_stream import Rotated

K = 70
X, ROW = "tensor<?x70xf32>", "tensor<70xf32>"
PRODUCT = """%{y} = "abq.matmul"(%x, %{w}) {{node = "{node}",
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
      : (tensor<?x70xf32>, tensor<5x70xf32>) -> tensor<?x5xf32>"""


def model(*nodes: str) -> str:
    weights = [f'%w{n} = "abq.weight"() {{sym = "{n}.w"}} : () -> tensor<5x70xf32>' for n in nodes]
    products = [PRODUCT.format(y=f"y{n}", w=f"w{n}", node=n) for n in nodes]
    values, types = ", ".join(f"%y{n}" for n in nodes), ", ".join(["tensor<?x5xf32>"] * len(nodes))
    body = "\n  ".join([*weights, *products, f"return {values} : {types}"])
    return f"func.func @main(%x: tensor<?x70xf32>) -> ({types}) {{\n  {body}\n}}"


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    rng = np.random.default_rng(0)
    store = WeightStore(tmp_path)
    for name in "abc":
        store.add(f"{name}.w", rng.standard_normal((5, K), np.float32))
    return store


def factors(seed: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).standard_normal(K)).astype(np.float32)


def balanced(store: WeightStore, recipe: str, *passes: str) -> tuple[Facts, Unit]:
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget())
    return after(model("a", "b", "c"), "balance-channels", *passes, unit=unit), unit


def test_products_that_share_factors_share_the_division(store: WeightStore) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        store.add(balance_symbol(f"{name}.w", name), factors(seed))
    facts, _ = balanced(store, "w8a8 balance")
    loops = facts("linalg.generic")
    assert len(loops) == 2
    sources = [op.operands[0].owner for op in facts("abq.matmul")]
    assert sources[0] == sources[1] == loops[0] and sources[2] == loops[1]
    inverse = store.get(loops[1].operands[1].owner.attributes["sym"].value)
    np.testing.assert_allclose(inverse * factors(2), 1, rtol=1e-6)


def test_products_without_factors_read_what_they_did(store: WeightStore) -> None:
    store.add(balance_symbol("a.w", "a"), factors(1))
    facts, _ = balanced(store, 'w8a8 balance\n"b" w8a8')
    assert [maker(op.operands[0]) for op in facts("abq.matmul")] == [
        "linalg.generic",
        "argument",
        "argument",
    ]
    facts, _ = balanced(store, "w8a8")  # the recipe does not ask for them
    assert not facts("linalg.generic")


def test_weights_are_multiplied_before_they_are_rotated(store: WeightStore) -> None:
    store.add(balance_symbol("a.w", "a"), factors(1))
    _, unit = balanced(store, "w8a4 balance rotate", "quantize")
    by_source = {encoding.source: encoding for encoding in unit.encodings.values()}
    plain, turned = (by_source[name].weight(store) for name in ("b.w", "a.w"))
    assert by_source["a.w"].hadamard_block and "balance of a" in by_source["a.w"].symbol
    np.testing.assert_allclose(np.square(plain).sum(), np.square(store.get("b.w")).sum(), rtol=1e-5)
    expected = np.square(store.get("a.w") * factors(1)).sum()
    np.testing.assert_allclose(np.square(turned).sum(), expected, rtol=1e-5)


def normalized(*extra: str, weight: bool = True) -> str:
    """Products `a` and `b` of a norm's rows, and what else `@main` returns."""
    gain = ('%g = "abq.weight"() {sym = "g"} : () -> tensor<70xf32>\n' if weight else "") + (
        '%c = "abq.weight"() {sym = "c"} : () -> tensor<70xf32>'
    )
    operands, types = ("%r, %g, %c", [X, ROW, ROW]) if weight else ("%r, %c", [X, ROW])
    text = model("a", "b")
    norm = f"""{gain}
  %x, %sum = "abq.norm"({operands}) {{kind = "layer", epsilon = 1.0e-5 : f32,
      operandSegmentSizes = array<i32: 1, 0, {int(weight)}, 1>}}
      : ({", ".join(types)}) -> ({X}, {X})"""
    text = text.replace("@main(%x", "@main(%r").replace(") {\n", ") {\n  " + norm + "\n", 1)
    for value in extra:
        text = text.replace("return ", f"return %{value}, ")
        text = text.replace("-> (", f"-> ({X}, ", 1).replace("%yb : ", f"%yb : {X}, ")
    return text


def norms_of(store: WeightStore, text: str, seeds: tuple[int, int] = (1, 1)) -> Facts:
    for name, seed in zip("ab", seeds, strict=True):
        store.add(balance_symbol(f"{name}.w", name), factors(seed))
    for name in "gc":
        store.add(name, factors(7))
    unit = Unit(store=store, recipe=parse_recipe("w8a8 balance"), target=CpuTarget())
    return after(text, "balance-channels", "canonicalize", "cse", unit=unit)


def held(value: object, store: WeightStore) -> np.ndarray:
    return store.get(value.owner.attributes["sym"].value)  # type: ignore[attr-defined]


def test_gains_of_a_norm_are_divided(store: WeightStore) -> None:
    facts = norms_of(store, normalized())
    (norm,) = facts("abq.norm")
    assert not facts("linalg.generic")
    for gain in (norm.opview.weight, norm.opview.bias):
        np.testing.assert_allclose(held(gain, store), factors(7) / factors(1), rtol=1e-6)


def test_a_norm_without_gains_gets_some(store: WeightStore) -> None:
    facts = norms_of(store, normalized(weight=False))
    (norm,) = facts("abq.norm")
    np.testing.assert_allclose(held(norm.opview.weight, store), 1 / factors(1), rtol=1e-6)
    np.testing.assert_allclose(held(norm.opview.bias, store), factors(7) / factors(1), rtol=1e-6)


@pytest.mark.parametrize(("extra", "seeds"), [(("x",), (1, 1)), ((), (1, 2)), (("sum",), (1, 2))])
def test_other_readers_keep_the_norm(
    store: WeightStore, extra: tuple[str, ...], seeds: tuple[int, int]
) -> None:
    facts = norms_of(store, normalized(*extra), seeds)
    assert len(facts("abq.norm")) == 2
    if "x" in extra:
        (result,) = (op.operands[0] for op in facts("func.return"))
        assert result.owner.opview.weight.owner.attributes["sym"].value == "g"


def test_the_sum_is_taken_from_the_norm_that_is_left(store: WeightStore) -> None:
    facts = norms_of(store, normalized("sum"))
    (norm,) = facts("abq.norm")
    assert "balance" in norm.opview.weight.owner.attributes["sym"].value


@pytest.mark.parametrize(
    ("recipe", "lacks"),
    [("w8a8 balance", "is not balanced"), ("w8 a8:channel", "has one static scale")],
)
def test_a_head_that_is_stored_with_its_table_stays(
    store: WeightStore, recipe: str, lacks: str
) -> None:
    store.add("table", np.ones((300, K), np.float32))
    text = f"""func.func @main(%x: {X}, %i: tensor<?xi64>) -> ({X}, tensor<?x300xf32>) {{
      %w = "abq.weight"() {{sym = "table"}} : () -> tensor<300x70xf32>
      %rows = "abq.gather"(%w, %i) {{node = "lookup",
          operandSegmentSizes = array<i32: 1, 1, 0, 0>}}
          : (tensor<300x70xf32>, tensor<?xi64>) -> {X}
      %y = "abq.matmul"(%x, %w) {{node = "head",
          operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
          : ({X}, tensor<300x70xf32>) -> tensor<?x300xf32>
      return %rows, %y : {X}, tensor<?x300xf32>
    }}"""
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget())
    after(text, "balance-channels", unit=unit)
    (note,) = unit.notes
    assert note["node"] == "head" and note["note"].startswith(lacks)
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget(), strict=True)
    with pytest.raises(RecipeError, match=f"{lacks}.*stored once with the embedding") as error:
        after(text, "balance-channels", unit=unit)
    assert error.value.node == "head"


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_have_one_static_scale(store: WeightStore, groups: int) -> None:
    store.add("w", np.ones((6, 4 // groups, 1, 1), np.float32))
    text = f"""func.func @main(%x: tensor<?x4x5x5xf32>) -> tensor<?x6x5x5xf32> {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<6x{4 // groups}x1x1xf32>
      %y = "abq.conv"(%x, %w) {{node = "c", strides = array<i64: 1, 1>,
          dilations = array<i64: 1, 1>, pads = array<i64: 0, 0, 0, 0>, groups = {groups} : i64,
          operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
          : (tensor<?x4x5x5xf32>, tensor<6x{4 // groups}x1x1xf32>) -> tensor<?x6x5x5xf32>
      return %y : tensor<?x6x5x5xf32>
    }}"""
    unit = Unit(store=store, recipe=parse_recipe("w8 a8:channel"), target=CpuTarget())
    after(text, "balance-channels", unit=unit)
    notes = [(note["node"], "static scale" in note["note"]) for note in unit.notes]
    assert notes == [("c", True)] * (groups == 1)  # those in groups stay float


@pytest.mark.parametrize(("norm", "post"), [("rms", False), ("layer", True), ("adaptive", False)])
def test_balanced_models_are_the_same(norm: str, post: bool, tmp_path: Path) -> None:
    model = Rotated(small.decoder(norm, post=post), tmp_path, "w8:g16 a16 balance")
    first, *rest = stages(on_device=False).values()
    run_pipeline(model.module, first[first.index("decompose-norm") :], model.unit)
    with model.module.context:
        for seed, op in enumerate(walk(model.module, "abq.matmul")):
            encoding = matmul_encoding(op, {}, model.unit)
            assert encoding is not None
            k = model.unit.store.shape(encoding.source)[1]
            factors = np.exp(0.3 * np.random.default_rng(seed // 2).standard_normal(k))
            model.unit.store.add(encoding.balance, factors.astype(np.float32))
    balanced = model.module.clone()
    run_pipeline(balanced, ("balance-channels",), model.unit)
    symbols = {op.attributes["sym"].value for op in walk(balanced, "abq.weight")}
    assert any("|balance" in symbol for symbol in symbols) == (norm != "adaptive")
    assert model.finish(rest) < 0.05  # codes of 8 bits; 1 and more where a factor is missing
