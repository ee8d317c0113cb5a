"""Reads the text of a recipe by its grammar, `recipe.lark`."""

from __future__ import annotations

import re
from functools import lru_cache

from abqc.dialects.cache_formats import CacheFormat, parse_cache_format
from abqc.dialects.formats import Half, Scheme, parse_scheme
from abqc.errors import RecipeError
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from .recipe import PER_CHANNEL, RANGES, Recipe, Rule

# Products that stay float, activations that do beside codes: what kernels of 16 bits round them to.
FLOATS: dict[str, Half] = {"none": "f16", "none:bf16": "bf16"}
FLOAT_ACTIVATIONS: dict[str, Half] = {"a16": "f16", "a16:f16": "f16", "a16:bf16": "bf16"}

# What each terminal of the grammar is called in messages, in the order in which they are listed.
TERMINALS = {
    "PATTERN": 'a quoted pattern ("*mlp*")',
    "NONE": "none, none:bf16",
    "WEIGHTS": "weights (w4, w2*, w4:g64:asym, mxfp4)",
    "ACTIVATIONS": "activations (a8, a8:token:sym, a8:channel, amxfp8, a16, a16:bf16)",
    "FLAG": "learn, balance, rotate, shift, clip, sort, search, gptq, rtn, minmax, percentile or "
    "integer",
    "CACHE": "formats of caches (kv8, kv4:g32, kv-bfp6)",
    "EMBED": "embed=w8, embed=w6:g64 or embed=none",
    "_NEWLINE": "a new line",
    "$END": "the end",
}


@lru_cache
def _parser() -> Lark:
    return Lark.open("recipe.lark", rel_to=__file__, parser="lalr")


def parse(text: str, source: str) -> Recipe:
    """The recipe that `text` is; `source` is what messages begin with. Raises RecipeError."""
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, text, source) from None
    lines = text.splitlines()
    rules = tuple(_rule(child, lines, source) for child in tree.children if isinstance(child, Tree))
    if not rules:
        raise RecipeError(
            f"{source}the recipe is empty", hint="'none' keeps everything in float, 'w4a8' does not"
        )
    return Recipe(rules, text.strip())


def _syntax_error(error: UnexpectedInput, text: str, source: str) -> RecipeError:
    if isinstance(error, UnexpectedCharacters):
        allowed = set(error.allowed or ())
    elif isinstance(error, UnexpectedToken):
        allowed = set(error.expected)
    else:
        allowed = set(error.expected if isinstance(error, UnexpectedEOF) else ())
    expected = ", ".join(name for key, name in TERMINALS.items() if key in allowed)
    position = error.pos_in_stream if error.pos_in_stream is not None else len(text)
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        position = len(text)
    word = re.match(r"\S+", text[position:])
    found = f"'{word.group()}'" if word else "the end of the line"
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    hint = None
    if not source and "\n" not in text and '"' not in text and re.search(r"[/\\.]", text):
        hint = f"there is no file '{text.strip()}' either"
    return RecipeError(
        f"{source}recipe line {line}, column {column}: {found} is not expected here; "
        f"expected {expected}",
        hint=hint,
    )


def _rule(tree: Tree, lines: list[str], source: str) -> Rule:
    words: dict[str, Token] = {}
    flags: set[str] = set()
    for token in tree.children:
        assert isinstance(token, Token)
        if (token in flags) if token.type == "FLAG" else (token.type in words):
            raise _error(token, source, f"'{token}' comes second: a rule says each thing once")
        if token.type == "FLAG":
            flags.add(str(token))
        words[token.type] = token
    _check_words(words, flags, source)
    activation = _activation(words.get("ACTIVATIONS"), source)
    if PER_CHANNEL in words.get("ACTIVATIONS", "").split(":"):
        flags.add(PER_CHANNEL)
    _check_range(words, flags, activation, source)
    activations = words.get("ACTIVATIONS", "")
    first = tree.children[0]
    assert isinstance(first, Token) and first.line is not None
    embed = words.get("EMBED")
    return Rule(
        pattern=words["PATTERN"][1:-1] if "PATTERN" in words else None,
        stays_float="NONE" in words,
        weight=_weight(words.get("WEIGHTS"), source),
        activation=activation,
        half=FLOATS[words["NONE"]]
        if "NONE" in words
        else FLOAT_ACTIVATIONS.get(activations, "f16"),
        flags=frozenset(flags),
        cache=_cache(words.get("CACHE"), source),
        decides_embed=embed is not None,
        embed=_embed(embed, source),
        line=first.line,
        text=lines[first.line - 1].split("#")[0].strip(),
    )


def _check_words(words: dict[str, Token], flags: set[str], source: str) -> None:
    """A rule has both formats, or neither and `none` or `embed=`; options belong to formats."""
    weights, activations = words.get("WEIGHTS"), words.get("ACTIVATIONS")
    if weights is not None and activations is None:
        raise _error(
            weights, source, f"'{weights}' has no activations; add a8, or a16 to keep them float"
        )
    if {"rtn", "gptq"} <= flags or {"rtn", "search"} <= flags:
        raise _error(words["FLAG"], source, "'rtn', rounding to nearest, allows no other rounding")
    if "shift" in flags and "gptq" not in flags and flags & {"rtn", "search"}:
        raise _error(words["FLAG"], source, "'shift' needs 'gptq': calibration finds the means")
    if "balance" in flags and PER_CHANNEL in (activations or "").split(":"):
        raise _error(
            words["FLAG"], source, f"'balance' contradicts '{activations}', which fixes the factors"
        )
    if "learn" in flags and activations is not None and ":channel" in activations:
        raise _error(
            words["FLAG"], source, "'learn' and a static scale for each channel exclude each other"
        )
    if "integer" in flags and flags & {"balance", "learn"}:
        other = "balance" if "balance" in flags else "learn"
        raise _error(words["FLAG"], source, f"'integer' and '{other}' exclude each other")
    if "integer" in flags and PER_CHANNEL in (activations or "").split(":"):
        raise _error(words["FLAG"], source, "'integer' has one scale for a tensor, as in a8:tensor")
    if "shift" in flags and activations in FLOAT_ACTIVATIONS:
        raise _error(words["FLAG"], source, "'shift' belongs to activations with a width, as in a8")
    if activations is not None and weights is None:
        raise _error(activations, source, f"'{activations}' has no weights; write w8{activations}")
    for key in ("WEIGHTS", "FLAG"):
        if key not in words or (key == "WEIGHTS" and "NONE" not in words):
            continue
        if "NONE" in words:
            none = words["NONE"]
            raise _error(words[key], source, f"'{words[key]}' contradicts '{none}'")
        if weights is None:
            raise _error(words[key], source, f"'{words[key]}' belongs to formats such as w4a8")


def _check_range(
    words: dict[str, Token], flags: set[str], activation: Scheme | None, source: str
) -> None:
    """How a static scale is chosen is said once, and of static activations alone."""
    given = [word for word in RANGES if word in flags]
    if len(given) > 1:
        raise _error(words["FLAG"], source, f"a rule has one of {' and '.join(given)}, not both")
    static = activation is not None and activation.granularity == "tensor"
    for word in (*given, *(["integer"] if "integer" in flags else [])):
        if not static:
            raise _error(
                words["FLAG"], source, f"'{word}' belongs to static scales, as in a8:tensor"
            )


def _activation(token: Token | None, source: str) -> Scheme | None:
    """None where they stay float."""
    if token is None or token in FLOAT_ACTIVATIONS:
        return None
    if token.startswith("a16"):
        known = ", ".join(FLOAT_ACTIVATIONS)
        raise _error(token, source, f"'{token}': activations that stay float are {known}")
    words = ("tensor" if word == PER_CHANNEL else word for word in token.split(":"))
    return _scheme(token.update(value=":".join(words)), source)


def _weight(token: Token | None, source: str) -> Scheme | None:
    """Formats that have names need no `w`: `mxfp4` is `wmxfp4`."""
    if token is None or token.startswith("w"):
        return _scheme(token, source)
    return _scheme(token.update(value=f"w{token}"), source)


def _scheme(token: Token | None, source: str) -> Scheme | None:
    if token is None:
        return None
    try:
        return parse_scheme(str(token))
    except ValueError as error:
        raise _error(token, source, str(error)) from None


def _cache(token: Token | None, source: str) -> CacheFormat | None:
    if token is None:
        return None
    try:
        return parse_cache_format(str(token))
    except ValueError as error:
        raise _error(token, source, str(error)) from None


def _embed(token: Token | None, source: str) -> Scheme | None:
    if token is None or token == "embed=none":
        return None
    text = token[len("embed=") :]
    if not text.startswith("w"):
        raise _error(token, source, f"'{token}': expected embed=w8, embed=w6:g64 or embed=none")
    try:
        return parse_scheme(text)
    except ValueError as error:
        raise _error(token, source, str(error)) from None


def _error(token: Token, source: str, message: str) -> RecipeError:
    return RecipeError(f"{source}recipe line {token.line}, column {token.column}: {message}")
