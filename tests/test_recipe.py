"""Recipes: what is read, who gets what, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from abqc.compiler import recipe_text
from abqc.compiler.read_recipe import parse_recipe
from abqc.compiler.recipe import Kind, OpRecipe
from abqc.dialects.formats import FORMATS
from abqc.errors import RecipeError

RULES = """
# everything else
w4a8 rotate

"*mlp.down_proj*"  w6a8   # more bits
"lm_head"          w8a16
"*/Gather"         embed=none
"*attn*"           w4:g32:asym a8:token:sym search
"*attn.first*"     none
"""


def what(op: OpRecipe) -> tuple[str | None, str | None]:
    return op.weight and op.weight.text, op.activation and op.activation.text


def test_the_recipe_that_is_not_parsed_is_what_the_parser_makes_of_it() -> None:
    assert parse_recipe("none") == recipe_text.parse("none", "")


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("none", None, None),
        ("w4a8", "w4:g128:sym", "a8:token:asym"),
        ("w8a8", "w8:channel:sym", "a8:token:asym"),
        ("w4a4 rotate", "w4:g128:sym", "a4:token:asym"),
        ("w4:g64:asym a8:token:sym", "w4:g64:asym", "a8:token:sym"),
        ("w2*a8 rotate gptq kv8", "w2*:g128:sym", "a8:token:asym"),
        ("wta8", "wt:g128:sym", "a8:token:asym"),
        ("w8a16", "w8:channel:sym", None),
        ("a8:tensor w3", "w3:g128:sym", "a8:tensor:asym"),
        ("mxfp4 a8", "wfp4:g32:sym:e8m0", "a8:token:asym"),
        ("wnvfp4a16", "wfp4:g16:sym:e4m3", None),
        ("mxfp8e5m2a8", "wfp8e5m2:g32:sym:e8m0", "a8:token:asym"),
        ("bfp5:g64 a8", "w5:g64:sym:e8m0", "a8:token:asym"),
        ("nf4 a16", "wnf4:g64:sym", None),
        ("w4 amxfp8", "w4:g128:sym", "afp8:g32:sym:e8m0"),
        ("mxfp4 abfp6:g64", "wfp4:g32:sym:e8m0", "a6:g64:sym:e8m0"),
    ],
)
def test_one_line(text: str, weight: str | None, activation: str | None) -> None:
    assert what(parse_recipe(text).resolve("any", "matmul")) == (weight, activation)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("width", sorted({row.width for row in FORMATS.values()}))
def test_every_pair_of_widths(width: str, bits: int) -> None:
    op = parse_recipe(f"w{width}a{bits}").resolve("any", "matmul")
    assert op.weight is not None and op.activation is not None
    assert (op.weight.format.width, op.activation.bits) == (width, bits)


def test_options() -> None:
    recipe = parse_recipe("w2*a8 rotate gptq kv8 search embed=w8")
    op = recipe.resolve("n", "matmul")
    assert (op.rotate, op.search, op.gptq) == (True, True, True)
    assert str(recipe.cache_format("past")) == "kv8"
    op = parse_recipe("w4a8").resolve("n", "matmul")
    assert (op.rotate, op.search, op.gptq) == (False, False, False)
    assert op.rule == "rule 'w4a8' (line 1)"


@pytest.mark.parametrize(
    ("node", "kind", "expected", "line"),
    [
        ("model.q_proj", "matmul", ("w4:g128:sym", "a8:token:asym"), 3),
        ("model.mlp.down_proj/MatMul", "matmul", ("w6:channel:sym", "a8:token:asym"), 5),
        ("lm_head", "matmul", ("w8:channel:sym", None), 6),
        ("x.lm_head", "matmul", ("w4:g128:sym", "a8:token:asym"), 3),
        ("embed", "gather", ("w8:channel:sym", None), 3),
        ("embed/Gather", "gather", (None, None), 7),
        ("embed/Gather", "matmul", ("w4:g128:sym", "a8:token:asym"), 3),
        ("attn.second", "matmul", ("w4:g32:asym", "a8:token:sym"), 8),
        ("attn.first", "matmul", (None, None), 9),
    ],
)
def test_the_last_match_wins(node: str, kind: Kind, expected: Any, line: int) -> None:
    op = parse_recipe(RULES).resolve(node, kind)
    assert what(op) == expected
    assert op.rule.endswith(f"(line {line})")


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("w4a16", "f16"),
        ("w4a16:f16", "f16"),
        ("w4:g64 a16:bf16 search", "bf16"),
        ("w4a8", "f16"),
        ("none", "f16"),
        ("none:bf16", "bf16"),
        ("none:bf16 kv8 embed=w8", "bf16"),
    ],
)
@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_what_floats_are_rounded_to(text: str, half: str, kind: Kind) -> None:
    assert parse_recipe(text).resolve("n", kind).half == half


def test_a_rule_that_wins_brings_no_options_of_others() -> None:
    recipe = parse_recipe(RULES)
    assert recipe.resolve("q", "matmul").rotate
    assert not recipe.resolve("lm_head", "matmul").rotate
    assert recipe.resolve("attn.second", "matmul").search


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("w4a8", "w8:channel:sym"),
        ("w4a8 embed=w8", "w8:channel:sym"),
        ("w4a8 embed=w4:g32:asym", "w4:g32:asym"),
        ("w4a8 embed=none", None),
        ("none embed=w8", "w8:channel:sym"),
        ('w4a8 embed=none\n"*" w8a8', None),
        ('w4a8\n"*" none', None),
    ],
)
def test_embedding_tables(text: str, expected: str | None) -> None:
    op = parse_recipe(text).resolve("table", "gather")
    assert what(op) == (expected, None)


def test_convolutions_have_images_for_tokens_and_are_not_rotated() -> None:
    op = parse_recipe("w4a8 rotate").resolve("c", "conv")
    assert what(op) == ("w4:g128:sym", "a8:image:asym") and not op.rotate
    op = parse_recipe("w4:g64 a8:token:sym").resolve("c", "conv")
    assert what(op) == ("w4:g64:sym", "a8:image:sym")
    op = parse_recipe("w4:g64 a8:tensor").resolve("c", "conv")
    assert what(op) == ("w4:g64:sym", "a8:tensor:asym")


def test_nodes_that_no_rule_matches_stay_float() -> None:
    op = parse_recipe('"a*" w4a8').resolve("b", "matmul")
    assert what(op) == (None, None) and op.rule == "no rule matches"


def test_whether_it_quantizes() -> None:
    assert not parse_recipe("none").quantizes
    assert not parse_recipe('none embed=none\n"x" none').quantizes
    assert not parse_recipe("none:bf16").quantizes
    assert parse_recipe("none embed=w8").quantizes and parse_recipe(RULES).quantizes


CACHES = """kv4
"*value" kv-bfp6
"past_1_*" none
"lm_head" w8a8
"""


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("none", "past_0_key", None),
        ("w4a8", "past_0_key", None),
        ("kv8", "past_0_key", "kv8"),
        ("none kv8", "past_0_key", "kv8"),
        ("kv4:g32 w4a8", "past_0_key", "kv4:g32"),
        (CACHES, "past_0_key", "kv4"),
        (CACHES, "past_0_value", "kv-bfp6"),
        (CACHES, "past_1_value", None),
        (CACHES, "lm_head", "kv4"),
        ('kv8\n"*" w4a8', "past_0_key", "kv8"),
    ],
)
def test_caches(text: str, name: str, expected: str | None) -> None:
    format = parse_recipe(text).cache_format(name)
    assert (format and format.text) == expected


def test_words_of_caches_say_nothing_of_nodes() -> None:
    recipe = parse_recipe('w4a8\n"*" kv4')
    assert what(recipe.resolve("n", "matmul")) == ("w4:g128:sym", "a8:token:asym")
    assert what(parse_recipe("kv4").resolve("table", "gather")) == (None, None)
    parse_recipe(CACHES).check_used(["lm_head"])
    assert recipe.without_caches().cache_format("past") is None


def test_formats_of_caches_are_for_caches_that_there_are() -> None:
    recipe = parse_recipe(CACHES)
    recipe.check_caches(["past_0_key", "past_0_value", "past_1_key"])
    recipe.check_caches(["past_0_key", "past_0_value"], ["past_1_node"])
    with pytest.raises(RecipeError, match=r"none' \(line 3\) matches no cache"):
        recipe.check_caches(["past_0_key", "past_0_value"])
    with pytest.raises(RecipeError, match=r"'\"\*value\" kv-bfp6' \(line 2\) matches no cache"):
        recipe.check_caches(["past_0_key"])
    with pytest.raises(RecipeError, match="the model has no cache"):
        recipe.check_caches([])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "my.recipe"
    path.write_bytes(RULES.replace("\n", newline).encode())
    for recipe in (path, str(path)):
        assert parse_recipe(recipe).rules == parse_recipe(RULES).rules
    path.write_text("w4a8\nw4 rotat")
    with pytest.raises(RecipeError, match=r"my\.recipe, recipe line 2, column 4: 'rotat'"):
        parse_recipe(path)
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        parse_recipe(tmp_path / "none.recipe")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        parse_recipe(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the recipe is empty"),
        ("# nothing", "the recipe is empty"),
        ("w9a8", "line 1, column 1: 'w9': no weights of width '9'; use one of w1, w1v, w2, w2*"),
        ("w4a9", "line 1, column 3: 'a9': no activations of width '9'"),
        ("w16a8", "no weights of width '16'"),
        ("w4", "column 1: 'w4' has no activations; add a8, or a16"),
        ("a8", "column 1: 'a8' has no weights; write w8a8"),
        ("w4a16:f32", "'a16:f32': activations that stay float are a16, a16:f16, a16:bf16"),
        ("rotate", "'rotate' belongs to formats such as w4a8"),
        ("embed=w8 search", "'search' belongs to formats such as w4a8"),
        ("w4a16 shift", "'shift' belongs to activations with a width, as in a8"),
        ("w8 a8:channel learn", "'learn' and a static scale for each channel exclude each other"),
        ("w8a8 minmax", "'minmax' belongs to static scales, as in a8:tensor"),
        ("w8 a8:tensor minmax percentile", "one of minmax and percentile, not both"),
        ("none w4a8", "column 6: 'w4' contradicts 'none'"),
        ("none rotate", "column 6: 'rotate' contradicts 'none'"),
        ("none:bf16 w4a8", "column 11: 'w4' contradicts 'none:bf16'"),
        ("none:f16", "column 1: 'none:f16' is not expected here"),
        ("w4a8 w8a8", "column 6: 'w8' comes second"),
        ("w4a8 rotate rotate", "column 13: 'rotate' comes second"),
        ("w4a8 rotat", "column 6: 'rotat' is not expected here; expected none, none:bf16, weights"),
        ("w4a8 kv9", "'kv9': a cache has 2 to 8 bits"),
        ("kv-bfp1", "'kv-bfp1': a cache has 2 to 8 bits"),
        ("kv-nf4", "'kv-nf4': a cache has 2 to 8 bits"),
        ("kv4:g20", "'kv4:g20': groups of caches have 16, 32, 64, 128 elements"),
        ("kv4:g16:g32", "'kv4:g16:g32': the group is given twice"),
        ("kv4:sym", "'kv4:sym': options of caches are g16 to g128, rotate, sort and plain"),
        ("kv4:sort:plain", "'kv4:sort:plain': the order of channels is given twice"),
        ("kv4 kv8", "column 5: 'kv8' comes second"),
        ("kv4 rotate", "'rotate' belongs to formats such as w4a8"),
        ("w4a8 embed=q", "'embed=q': expected embed=w8, embed=w6:g64 or embed=none"),
        ("w4a8 embed=w4:token", "'token' is no granularity of weights"),
        ("w4a8:channel balance", "'balance' contradicts 'a8:channel', which fixes the factors"),
        ("w8 a8:tensor integer balance", "'integer' and 'balance' exclude each other"),
        ("w8 a8:tensor learn integer", "'integer' and 'learn' exclude each other"),
        ("w8 a8:channel integer", "'integer' has one scale for a tensor"),
        ("w4a8:channel:token", "what shares a scale is given twice"),
        ("w2*:asym a8", "width '2*' is always symmetric"),
        (
            '"x"',
            "column 4: the end of the line is not expected here; expected none, none:bf16, weights",
        ),
        ('w4a8\n"x" bar', "line 2, column 5: 'bar' is not expected here"),
        ('w4a8\n"x w8a8', "line 2, column 1: '\"x' is not expected here"),
        ('w4a8 "x"', "column 6: '\"x\"' is not expected here"),
        ("no/such.recipe", "there is no file 'no/such.recipe' either"),
        ("\x00", "is not expected here"),
    ],
)
def test_errors(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


KINDS: dict[str, Kind] = {"mlp.up": "matmul", "mlp.down": "matmul", "wte": "gather"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('w4a8\n"*MLP*" w8a8', "rule '\"*MLP*\" w8a8' (line 2) matches no node with constant "
         "weights; such nodes are 'mlp.up', 'mlp.down'"),
        ('"zz" none', "such nodes are 'mlp.up', 'mlp.down', 'wte'"),
        ('"wte" w4a8', "matches embedding tables only; their formats are given by embed="),
        ('"mlp*" embed=w4', "matches no embedding table"),
        ('w4a8\n"mlp.up" w4a8 embed=w4', "matches no embedding table"),
    ],
)  # fmt: skip
def test_rules_that_do_nothing(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text).check_used(KINDS)
    assert complaint in str(error.value)


def test_a_recipe_for_a_model_without_weights() -> None:
    with pytest.raises(RecipeError, match=r"matches nothing.*use the recipe 'none'"):
        parse_recipe("w4a8").check_used([])
    parse_recipe("none").check_used([])


def test_rules_that_do_something() -> None:
    recipe = parse_recipe('w4a8\n"mlp*" w8a8\n"mlp.up" none\n"w*" embed=w4')
    recipe.check_used(KINDS)
    recipe.check_used(list(KINDS))


def test_calibration_data_change_what_a_rule_leaves_open() -> None:
    recipe = parse_recipe('w4a8\n"a" w4a4\n"b" w4a8 rtn\n"c" w4a4 search\n"d" none')
    assert recipe.needs_data is None
    calibrated = recipe.with_calibration()
    found = [calibrated.resolve(name, "matmul") for name in ("x", "a", "b", "c", "d")]
    assert [op.gptq for op in found] == [True, True, False, False, False]
    assert [op.rotate for op in found] == [True, True, False, False, False]
    assert [op.clip for op in found] == [False, True, False, False, False]
    assert [op.shift for op in found] == [False, True, False, False, False]
    assert found[1].words == "a4:token:asym rotate shift clip gptq"
    assert calibrated.needs_data and calibrated.with_calibration() == calibrated


@pytest.mark.parametrize(
    ("rule", "rotated"),
    [
        ("w4a8", True),
        ("w7a8", True),
        ("w3:g32:asym a8:tensor", True),
        ("w8a8", False),
        ("w8a4", True),
        ("w4a16", False),
        ("w2v a16", True),
        ("mxfp4 a8", False),
        ("bfp5:g64 a8", False),
        ("wta8", False),
        ("w4a8 balance", False),
        ("w4a8 sort", False),
        ("w4 a8:channel", False),
    ],
)
def test_few_bits_are_rotated_with_data(rule: str, rotated: bool) -> None:
    op = parse_recipe(rule).with_calibration().resolve("x", "matmul")
    assert op.gptq and op.rotate == rotated


def test_what_is_learned_is_rounded_as_the_rule_says() -> None:
    recipe = parse_recipe('w4a8 learn\n"a" w4a8 balance learn rtn\n"b" w4a8').with_calibration()
    assert recipe.needs_data
    found = [recipe.resolve(name, "matmul") for name in ("x", "a", "b")]
    assert [op.learn for op in found] == [True, True, False]
    assert [op.gptq for op in found] == [True, False, True]
    assert not recipe.resolve("x", "conv").learn
    assert found[1].words == "a8:token:asym learn balance rtn"


def test_balance_and_scales_for_channels() -> None:
    recipe = parse_recipe('w8a8 balance rtn\n"c" w8 a8:channel:sym rtn\n"f" w4a16 balance rtn')
    found = [recipe.resolve(name, "matmul") for name in ("x", "c", "f")]
    assert [op.balance for op in found] == [True, True, True]
    assert [op.per_channel for op in found] == [False, True, False]
    assert str(found[1].activation) == "a8:tensor:sym"
    words = ["a8:token:asym balance rtn", "a8:channel:sym rtn", "a16:f16 balance rtn"]
    assert [op.words for op in found] == words
    assert not recipe.resolve("x", "conv").balance
    assert recipe.needs_data == "balance"
    assert parse_recipe("w8 a8:channel").needs_data == "a static scale for each channel"


def test_rounding_to_nearest_allows_no_other_rounding() -> None:
    with pytest.raises(RecipeError, match="'rtn', rounding to nearest, allows no other"):
        parse_recipe("w4a8 rtn gptq")


@pytest.mark.parametrize("word", ["", "minmax", "percentile"])
def test_how_static_scales_are_chosen(word: str) -> None:
    for kind in ("matmul", "conv", "scan"):
        op = parse_recipe(f"w8 a8:tensor {word}").resolve("x", kind)
        assert op.range == word and op.activation is not None
    again = parse_recipe(f"w8 {op.words}").resolve("x", "matmul")
    assert again.words == op.words
