"""Recipes: which operation gets which number format.

    w4a8 rotate                      # one line: the default rule
    "*mlp.down_proj*"  w6a8          # in a file, a rule a line: patterns over ONNX node names
    "lm_head"          w8a16:bf16    # the last rule that matches decides

The grammar is `recipe.lark`; what `w4` alone means stands in docs/numerics.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal

from abqc.dialects.formats import Half, Scheme, parse_scheme
from abqc.errors import RecipeError
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

Kind = Literal["matmul", "conv", "gather"]

DEFAULT_EMBED = parse_scheme("w8:channel:sym")
# Activations that stay float, and the 16-bit type that GPUs round them to.
FLOAT_ACTIVATIONS: dict[str, Half] = {"a16": "f16", "a16:f16": "f16", "a16:bf16": "bf16"}
CACHE_BITS = range(2, 9)

# What each terminal of the grammar is called in messages, in the order in which they are listed.
TERMINALS = {
    "PATTERN": 'a quoted pattern ("*mlp*")',
    "NONE": "none",
    "WEIGHTS": "weights (w4, w2*, w4:g64:asym)",
    "ACTIVATIONS": "activations (a8, a8:token:sym, a16, a16:bf16)",
    "FLAG": "rotate, search or gptq",
    "CACHE": "kvN (kv8)",
    "EMBED": "embed=w8 or embed=none",
    "_NEWLINE": "a new line",
    "$END": "the end",
}


@dataclass(frozen=True)
class OpRecipe:
    """What one operation gets. `weight` None: it stays float; `activation` None: they stay float.

    `kv_bits` are the bits of the key/value cache, None for float. `rule` is the text of the rule
    that decided, with its line, for messages. `half` is what a GPU rounds float activations to.
    """

    weight: Scheme | None
    activation: Scheme | None
    rotate: bool
    search: bool
    gptq: bool
    kv_bits: int | None
    rule: str
    half: Half = "f16"


@dataclass(frozen=True)
class Rule:
    """One line of a recipe. `embed` counts only where `decides_embed`."""

    pattern: str | None
    stays_float: bool
    weight: Scheme | None
    activation: Scheme | None
    half: Half
    flags: frozenset[str]
    kv_bits: int | None
    decides_embed: bool
    embed: Scheme | None
    line: int
    text: str

    @property
    def decides_products(self) -> bool:
        """Whether it says anything about matmuls and convolutions."""
        return self.stays_float or self.weight is not None

    @property
    def quantizes(self) -> bool:
        return self.weight is not None or self.embed is not None

    def matches(self, node: str) -> bool:
        return self.pattern is None or fnmatchcase(node, self.pattern)

    def __str__(self) -> str:
        return f"rule '{self.text}' (line {self.line})"


@dataclass(frozen=True)
class Recipe:
    """Rules in the order of their lines, and the text they were read from."""

    rules: tuple[Rule, ...]
    text: str

    @property
    def quantizes(self) -> bool:
        """Whether any rule asks for codes: False for the recipe `none`."""
        return any(rule.quantizes for rule in self.rules)

    def resolve(self, node: str, kind: Kind) -> OpRecipe:
        """What the node gets: by the last rule that matches its name and speaks of its kind.

        Embedding tables (`gather`) follow `embed=` and `none` only; where a rule gives formats
        and no rule says `embed=`, they have 8 bits per row. Convolutions have no tokens: `token`
        gives them one scale per image. Only matmuls are rotated.
        """
        matching = [rule for rule in reversed(self.rules) if rule.matches(node)]
        if kind == "gather":
            return _resolve_gather(matching)
        rule = next((rule for rule in matching if rule.decides_products), None)
        if rule is None or rule.stays_float:
            return _float(rule)
        return OpRecipe(
            weight=rule.weight,
            activation=_for_conv(rule.activation) if kind == "conv" else rule.activation,
            rotate="rotate" in rule.flags and kind == "matmul",
            search="search" in rule.flags,
            gptq="gptq" in rule.flags,
            kv_bits=rule.kv_bits,
            rule=str(rule),
            half=rule.half,
        )

    def check_used(self, nodes: Mapping[str, Kind] | Iterable[str]) -> None:
        """Raise RecipeError for a rule that does nothing to `nodes`, those with constant weights.

        Where `nodes` maps names to kinds, a rule of formats that matches tables only is an error
        too. A default rule may match nothing if it asks for nothing.
        """
        names = list(nodes)
        for rule in self.rules:
            matched = [name for name in names if rule.matches(name)]
            if rule.pattern is not None and not matched:
                raise RecipeError(
                    f"{rule} matches no node with constant weights",
                    hint=_nearby(rule.pattern, names),
                )
            if not matched and rule.quantizes:
                raise RecipeError(
                    f"{rule} matches nothing: the model has no MatMul, Gemm, Conv or Gather with "
                    "constant weights",
                    hint="use the recipe 'none'",
                )
            if rule.pattern is not None and isinstance(nodes, Mapping):
                _check_kinds(rule, {nodes[name] for name in matched})


def _check_kinds(rule: Rule, kinds: set[Kind]) -> None:
    """A rule with a pattern must speak of one of the kinds that it matches."""
    if kinds == {"gather"} and not (rule.decides_embed or rule.stays_float):
        raise RecipeError(
            f"{rule} matches embedding tables only",
            hint=f"their formats are given by embed=, as in 'embed={rule.weight}'",
        )
    if "gather" not in kinds and not rule.decides_products:
        raise RecipeError(f"{rule} matches no embedding table", hint="remove its embed=")


def _resolve_gather(matching: list[Rule]) -> OpRecipe:
    rule = next((rule for rule in matching if rule.decides_embed or rule.stays_float), None)
    embed = rule.embed if rule is not None else None
    if rule is None and matching:
        rule, embed = matching[0], DEFAULT_EMBED
    if rule is None or embed is None:
        return _float(rule)
    return OpRecipe(embed, None, False, "search" in rule.flags, False, None, str(rule))


def _float(rule: Rule | None) -> OpRecipe:
    text = "no rule matches" if rule is None else str(rule)
    return OpRecipe(None, None, False, False, False, None, text)


def _for_conv(activation: Scheme | None) -> Scheme | None:
    if activation is None or activation.granularity != "token":
        return activation
    return Scheme("a", activation.format, "image")


def _nearby(pattern: str, names: list[str]) -> str:
    """Advice for a pattern that matches nothing: names that hold its longest literal part."""
    if not names:
        return "the model has no such nodes"
    literal = max(re.split(r"[*?\[\]]", pattern), key=len).lower()
    close = [name for name in names if literal in name.lower()] or names
    return "such nodes are " + ", ".join(f"'{name}'" for name in close[:3])


def parse_recipe(recipe: str | Path) -> Recipe:
    """Read a recipe: a text of one or several lines, or the path of a file.

    A string without a line break that names a file is that file. Raises RecipeError with the
    position and what was expected there.
    """
    if isinstance(recipe, Path):
        return _parse(_read(recipe), f"{recipe}, ")
    if "\n" not in recipe and recipe and len(recipe) < 4096 and Path(recipe).is_file():
        return _parse(_read(Path(recipe)), f"{recipe}, ")
    return _parse(recipe, "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None


@lru_cache
def _parser() -> Lark:
    return Lark.open("recipe.lark", rel_to=__file__, parser="lalr")


def _parse(text: str, source: str) -> Recipe:
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
    _check_words(words, source)
    first = tree.children[0]
    assert isinstance(first, Token) and first.line is not None
    embed = words.get("EMBED")
    return Rule(
        pattern=words["PATTERN"][1:-1] if "PATTERN" in words else None,
        stays_float="NONE" in words,
        weight=_scheme(words.get("WEIGHTS"), source),
        activation=_activation(words.get("ACTIVATIONS"), source),
        half=FLOAT_ACTIVATIONS.get(words.get("ACTIVATIONS", ""), "f16"),
        flags=frozenset(flags),
        kv_bits=_cache_bits(words.get("CACHE"), source),
        decides_embed=embed is not None,
        embed=_embed(embed, source),
        line=first.line,
        text=lines[first.line - 1].split("#")[0].strip(),
    )


def _check_words(words: dict[str, Token], source: str) -> None:
    """A rule has both formats, or neither and `none` or `embed=`; options belong to formats."""
    weights, activations = words.get("WEIGHTS"), words.get("ACTIVATIONS")
    if weights is not None and activations is None:
        raise _error(
            weights, source, f"'{weights}' has no activations; add a8, or a16 to keep them float"
        )
    if activations is not None and weights is None:
        raise _error(activations, source, f"'{activations}' has no weights; write w8{activations}")
    for key in ("WEIGHTS", "FLAG", "CACHE"):
        if key not in words or (key == "WEIGHTS" and "NONE" not in words):
            continue
        if "NONE" in words:
            raise _error(words[key], source, f"'{words[key]}' contradicts 'none'")
        if weights is None:
            raise _error(words[key], source, f"'{words[key]}' belongs to formats such as w4a8")


def _activation(token: Token | None, source: str) -> Scheme | None:
    """None where they stay float."""
    if token is None or token in FLOAT_ACTIVATIONS:
        return None
    if token.startswith("a16"):
        known = ", ".join(FLOAT_ACTIVATIONS)
        raise _error(token, source, f"'{token}': activations that stay float are {known}")
    return _scheme(token, source)


def _scheme(token: Token | None, source: str) -> Scheme | None:
    if token is None:
        return None
    try:
        return parse_scheme(str(token))
    except ValueError as error:
        raise _error(token, source, str(error)) from None


def _cache_bits(token: Token | None, source: str) -> int | None:
    if token is None:
        return None
    bits = int(token[len("kv") :])
    if bits not in CACHE_BITS:
        raise _error(
            token, source, f"'{token}': a cache has {CACHE_BITS[0]} to {CACHE_BITS[-1]} bits"
        )
    return bits


def _embed(token: Token | None, source: str) -> Scheme | None:
    if token is None or token == "embed=none":
        return None
    text = token[len("embed=") :]
    if not text.startswith("w"):
        raise _error(token, source, f"'{token}': expected embed=w8 or embed=none")
    try:
        return parse_scheme(text)
    except ValueError as error:
        raise _error(token, source, str(error)) from None


def _error(token: Token, source: str, message: str) -> RecipeError:
    return RecipeError(f"{source}recipe line {token.line}, column {token.column}: {message}")
