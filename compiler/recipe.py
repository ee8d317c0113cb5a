"""Recipes: which operation gets which number format.

    w4a8 rotate                      # one line: the default rule
    "*mlp.down_proj*"  w6a8          # in a file, a rule a line: patterns over ONNX node names
    "lm_head"          w8a16:bf16    # the last rule that matches decides
    "past*value"       kv8           # caches: over the names of their inputs

`read_recipe.py` reads them; what `w4` alone means stands in docs/numerics.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.formats import Half, Scheme, parse_scheme
from abqc.errors import NothingToQuantizeError, RecipeError

Kind = Literal["matmul", "conv", "gather", "scan"]

# How weights are rounded: with error feedback, by the scale of least error, to nearest.
ROUNDINGS = frozenset({"gptq", "search", "rtn"})
# How calibration chooses the scale of static activations: by the largest and smallest value, by a
# percentile of them; by least squares if nothing is said.
RANGES = ("minmax", "percentile")
# A flag that stands for static activations with a scale for each channel, `a8:channel`: `a8:tensor`
# of rows that are divided by the channels' ranges.
PER_CHANNEL = "channel"
ROTATED_BELOW_BITS = 8
SHAPED = frozenset({"balance", "learn", "sort", "integer", PER_CHANNEL})
DEFAULT_EMBED = parse_scheme("w8:channel:sym")


@dataclass(frozen=True)
class OpRecipe:
    """What one operation gets. `weight` None: it stays float; `activation` None: they stay float.

    `rule` is the text of the rule that decided, with its line, for messages; `named` that it has a
    pattern. `half` is what kernels of 16 bits round floats to: those of a GPU, and of bf16 those of
    a CPU.
    """

    weight: Scheme | None
    activation: Scheme | None
    rotate: bool
    search: bool
    gptq: bool
    rule: str
    half: Half = "f16"
    sort: bool = False
    clip: bool = False
    range: str = ""  # of RANGES, or empty
    shift: bool = False
    balance: bool = False
    learn: bool = False
    per_channel: bool = False  # static activations have a scale for each channel
    integer: bool = False
    rtn: bool = False
    named: bool = False

    @property
    def words(self) -> str:
        """Activations and flags as a rule spells them."""
        flags = {
            "learn": self.learn,
            "balance": self.balance and not self.per_channel,
            "rotate": self.rotate,
            "shift": self.shift,
            "clip": self.clip,
            "sort": self.sort,
            "search": self.search,
            "gptq": self.gptq,
            "rtn": self.rtn,
            "integer": self.integer,
        }
        activation = f"a16:{self.half}" if self.activation is None else self.activation.text
        if self.per_channel:
            activation = activation.replace("tensor", PER_CHANNEL)
        words = [activation, *(flag for flag, asked in flags.items() if asked), self.range]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Rule:
    """One line of a recipe. `embed` counts only where `decides_embed`; `cache` None: nothing is
    said of caches, or, where it `stays_float`, that they do too."""

    pattern: str | None
    stays_float: bool
    weight: Scheme | None
    activation: Scheme | None
    half: Half
    flags: frozenset[str]
    cache: CacheFormat | None
    decides_embed: bool
    embed: Scheme | None
    line: int
    text: str
    implied: frozenset[str] = frozenset()  # of the flags, those that came with calibration data

    @property
    def decides_products(self) -> bool:
        """Whether it says anything about matmuls and convolutions."""
        return self.stays_float or self.weight is not None

    @property
    def decides_nodes(self) -> bool:
        """Whether it says anything about nodes, and not of caches alone."""
        return self.decides_products or self.decides_embed

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
        gives them one scale per image. Only matmuls are rotated. Selective scans (`scan`) have no
        weights: of a rule they take the activations.
        """
        matching = [r for r in reversed(self.rules) if r.decides_nodes and r.matches(node)]
        if kind == "gather":
            return _resolve_gather(matching)
        rule = next((rule for rule in matching if rule.decides_products), None)
        if rule is None or rule.stays_float:
            return _float(rule)
        activation = rule.activation
        if kind == "conv":
            activation = _for_conv(activation)
        return OpRecipe(
            weight=rule.weight,
            activation=activation,
            rotate="rotate" in rule.flags and kind == "matmul",
            search="search" in rule.flags,
            gptq="gptq" in rule.flags,
            rule=str(rule),
            half=rule.half,
            sort="sort" in rule.flags and kind == "matmul",
            clip="clip" in rule.flags and kind == "matmul",
            range=next((word for word in RANGES if word in rule.flags), ""),
            shift="shift" in rule.flags and kind == "matmul",
            balance=bool(rule.flags & {"balance", PER_CHANNEL}) and kind == "matmul",
            per_channel=PER_CHANNEL in rule.flags,
            learn="learn" in rule.flags and kind == "matmul",
            integer="integer" in rule.flags,
            rtn="rtn" in rule.flags,
            named=rule.pattern is not None,
        )

    def cache_format(self, name: str) -> CacheFormat | None:
        """What the cache that comes in as input `name` gets, by the last rule that matches this
        name and speaks of caches; None: it stays as it is."""
        for rule in reversed(self.rules):
            if rule.matches(name) and (rule.cache is not None or rule.stays_float):
                return rule.cache
        return None

    def without_caches(self) -> Recipe:
        """The same for nodes; caches stay as they are."""
        rules = (replace(rule, cache=None) for rule in self.rules if rule.decides_nodes)
        return Recipe(tuple(rules), self.text)

    @property
    def quantizes_caches(self) -> bool:
        return any(rule.cache is not None for rule in self.rules)

    def check_caches(self, caches: list[str], nodes: Iterable[str] = ()) -> None:
        """Raise RecipeError for a rule on caches that matches none of `caches`, the names of
        inputs; one that keeps things as they are may match one of `nodes` instead."""
        if not self.quantizes_caches:
            return
        for rule in self.rules:
            known = [*caches, *nodes] if rule.stays_float and rule.cache is None else caches
            if rule.cache is None and (rule.pattern is None or not rule.stays_float):
                continue
            if any(map(rule.matches, known)):
                continue
            if not caches:
                raise RecipeError(
                    f"{rule} asks for {rule.cache}, and the model has no cache: no input to which "
                    "rows are appended that come back as an output",
                    hint="export the model with its past keys and values, or leave the word out",
                )
            raise RecipeError(
                f"{rule} matches no cache", hint=_nearby(rule.pattern or "", caches, "caches")
            )

    @property
    def asks_integers(self) -> bool:
        """Whether any rule asks for an integer-only graph."""
        return any("integer" in rule.flags for rule in self.rules)

    @property
    def needs_data(self) -> str | None:
        """What a rule asks for that calibration data alone can give; None if nothing."""
        words = {
            "gptq": "gptq, error feedback,",
            "shift": "shift",
            "balance": "balance",
            "learn": "learn",
            "integer": "integer",
            PER_CHANNEL: "a static scale for each channel",
        }
        return next((t for w, t in words.items() if any(w in r.flags for r in self.rules)), None)

    def with_calibration(self) -> Recipe:
        """What the recipe means where there are calibration data.

        A rule that says nothing of how weights are rounded (gptq, search, rtn) feeds errors back,
        and rotates activations of fewer than 8 bits, which the few outliers would cost most;
        rotated ones are clipped to the part of their range that loses least.
        """
        return Recipe(tuple(_with_calibration(rule) for rule in self.rules), self.text)

    def check_used(self, nodes: Mapping[str, Kind] | Iterable[str]) -> None:
        """Raise RecipeError for a rule that does nothing to `nodes`, those with constant weights.

        Where `nodes` maps names to kinds, a rule of formats that matches tables only is an error
        too. A default rule may match nothing if it asks for nothing.
        """
        names = list(nodes)
        for rule in self.rules:
            if not rule.decides_nodes or (rule.stays_float and self.quantizes_caches):
                continue  # check_caches sees to it
            matched = [name for name in names if rule.matches(name)]
            if rule.pattern is not None and not matched:
                raise RecipeError(
                    f"{rule} matches no node with constant weights",
                    hint=_nearby(rule.pattern, names),
                )
            if not matched and rule.quantizes:
                raise NothingToQuantizeError(
                    f"{rule} matches nothing: the model has no MatMul, Gemm, Conv or Gather with "
                    "constant weights",
                    hint="use the recipe 'none'",
                )
            if rule.pattern is not None and isinstance(nodes, Mapping):
                _check_kinds(rule, {nodes[name] for name in matched})


# What most compiles are given: nothing is quantized.
FLOAT = Recipe(
    rules=(
        Rule(
            pattern=None,
            stays_float=True,
            weight=None,
            activation=None,
            half="f16",
            flags=frozenset(),
            cache=None,
            decides_embed=False,
            embed=None,
            line=1,
            text="none",
        ),
    ),
    text="none",
)


def _with_calibration(rule: Rule) -> Rule:
    if rule.weight is None or rule.flags & ROUNDINGS:
        return rule
    added = {"gptq"}
    few = rule.activation is not None and rule.activation.bits < ROTATED_BELOW_BITS
    if few and "integer" not in rule.flags:
        added |= {"rotate", "shift", "clip"}
    if _gains_by_rotation(rule):
        added.add("rotate")
    return replace(rule, flags=rule.flags | added, implied=frozenset(added) - rule.flags)


def _gains_by_rotation(rule: Rule) -> bool:
    """Whether weights are better rounded as the Gaussian ones that a rotation makes (measured:
    docs/accuracy.md): trellis codes are made for them; integers of few bits lose a quarter less.

    Rows that stay float are not turned for it, and blocks with scales of one byte lose by it. Who
    asks for balanced, learned, sorted or integer products gets these.
    """
    assert rule.weight is not None
    if rule.weight.format.kind == "trellis":
        return True
    is_integer = rule.weight.format.kind in ("signed", "unsigned") and rule.weight.scale == "f16"
    few = is_integer and rule.weight.bits < ROTATED_BELOW_BITS
    return few and rule.activation is not None and not rule.flags & SHAPED


def pattern_of(node: str) -> str:
    """The quoted pattern of a rule for one node."""
    plain = re.sub(r"([*?\[])", r"[\1]", node)
    return '"' + re.sub(r'["\n]', "?", plain) + '"'


def _check_kinds(rule: Rule, kinds: set[Kind]) -> None:
    """A rule with a pattern must speak of one of the kinds that it matches."""
    if kinds == {"gather"} and not (rule.decides_embed or rule.stays_float):
        raise RecipeError(
            f"{rule} matches embedding tables only",
            hint=f"their formats are given by embed=, as in 'embed={rule.weight}'",
        )
    if "gather" not in kinds and (rule.embed is not None or not rule.decides_products):
        raise RecipeError(f"{rule} matches no embedding table", hint="remove its embed=")


def _resolve_gather(matching: list[Rule]) -> OpRecipe:
    rule = next((rule for rule in matching if rule.decides_embed or rule.stays_float), None)
    embed = rule.embed if rule is not None else None
    if rule is None and matching:
        rule, embed = matching[0], DEFAULT_EMBED
    if rule is None or embed is None:
        return _float(rule)
    return OpRecipe(embed, None, False, "search" in rule.flags, False, str(rule))


def _float(rule: Rule | None) -> OpRecipe:
    if rule is None:
        return OpRecipe(None, None, False, False, False, "no rule matches")
    return OpRecipe(None, None, False, False, False, str(rule), half=rule.half)


def _for_conv(activation: Scheme | None) -> Scheme | None:
    if activation is None or activation.granularity != "token":
        return activation
    return Scheme("a", activation.format, "image")


def _nearby(pattern: str, names: list[str], kind: str = "nodes") -> str:
    """Advice for a pattern that matches nothing: names that hold its longest literal part."""
    if not names:
        return f"the model has no such {kind}"
    literal = max(re.split(r"[*?\[\]]", pattern), key=len).lower()
    close = [name for name in names if literal in name.lower()] or names
    return f"such {kind} are " + ", ".join(f"'{name}'" for name in close[:3])
