"""The recipe that a budget buys: what calibration shows of each product, and what formats cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, Protocol

import numpy as np
from abqc.compiler.commands.table import byte_count
from abqc.compiler.files import write_text
from abqc.compiler.job import Request
from abqc.compiler.read_recipe import parse_recipe
from abqc.compiler.recipe import Recipe, pattern_of
from abqc.dialects.formats import Scheme, parse_scheme
from abqc.errors import InputError, RecipeError

from .budget import (
    Budget,
    Option,
    Weighed,
    allocate,
    cheapest,
    errors,
    options_of,
    total,
    weigh,
)
from .costs import Costs, Product, code_bytes, in_format
from .engine import Calibration
from .error_feedback import Feedback
from .kept import KeptCodes
from .products import stand_ins
from .sensitivity import Sensitivities, error_file, write_error
from .tasks import Judged

Progress = Callable[[str, int, int], None]
Chosen = Mapping[str, Option]  # by node
Options = Mapping[str, Sequence[Option]]
WeighedProducts = Mapping[str, Sequence[Weighed]]

# How often a choice is made anew because its library turned out larger or slower than expected:
# kernels are code too, and how fast weights come depends on the bytes of all.
ATTEMPTS = 5
CLOSE = 0.99  # of the budget: the search ends here

WEIGHED = "weighed formats"  # the name by which they are kept

# How much of a sensitivity's logarithm, against the usual one, is believed: it is measured on a few
# hundred tokens, and before later products make good for a part of the errors that they read (which
# error feedback does). Measured on smollm2, KL: at 4.02 bits 0.044 with 1/2 and 0.045 with
# 0 (one format for all), at 4.00 bits 0.053 with 1/2 and 0.050 with 1: no value is clearly best.
TRUST = 0.5

# What a manifest may say of a calibration, and of each of its products.
RECORD_BYTES = 100


def nothing_to_calibrate() -> RecipeError:
    return RecipeError(
        "the recipe has nothing to calibrate",
        hint="error feedback is for products with constant weights of floats, in no branch or "
        "loop, whose rule has gptq; compile without --calib",
    )


def plan(
    calibration: Calibration,
    sensitivities: Sensitivities,
    kept: KeptCodes,
    budget: Budget,
    request: Request,
    recipe: Recipe,
    progress: Progress,
) -> Recipe:
    """The recipe that spends `budget` best; it is written beside the library, for people to edit.

    Activations and all other nodes are as `recipe` says, which was asked for. Raises InputError for
    a budget that cannot be met, with the least that can. What formats leave of products is looked
    up in `kept`, if it is there.
    """
    if any("integer" in rule.flags for rule in recipe.rules):
        raise InputError(
            "--budget chooses no formats of integer-only graphs",
            hint="leave the word integer out, or the budget",
        )
    kinds: Mapping[str, Any] = calibration.unit.node_kinds

    def written(chosen: Chosen, note: str = "") -> str:
        lines = [recipe.text, f"# chosen for --budget {budget}{note}:"]
        for node, option in chosen.items():
            words = recipe.resolve(node, kinds.get(node, "matmul")).words
            lines.append(f"{pattern_of(node)} {option.scheme.text} {words}")
        return "\n".join(lines) + "\n"

    def read(chosen: Chosen) -> Recipe:
        return parse_recipe(written(chosen)).with_calibration()

    meter: Meter = Bits()
    if budget.kind != "bpw":
        costs = Costs(request, recipe, calibration.unit.on_pass)
        if budget.kind == "size":
            meter = Bytes(costs, read, calibration)
        else:
            meter = Seconds(costs, budget)
    weighed = read_weighed(kept.get_text(WEIGHED))
    if weighed is None:
        weighed = _weigh_all(calibration, sensitivities)
        kept.put_text(WEIGHED, write_weighed(weighed))
    progress("spend the budget", 0, 1)
    options = _options(weighed, meter)
    chosen, taken = spend(options, meter, budget)
    progress("spend the budget", 1, 1)
    write_text(request.output.with_suffix(".recipe.txt"), written(chosen, f" ({taken})"))
    return read(chosen)


def _weigh_all(calibration: Calibration, sensitivities: Sensitivities) -> WeighedProducts:
    """What each candidate leaves of each product, as the model's outputs show it."""
    surveyed = dict(calibration.survey(_weigh, error_file))
    if not surveyed:
        raise nothing_to_calibrate()
    matter = sensitivities.measure(list(surveyed), calibration.folder)
    known = [each for each in matter.values() if each > 0]  # NaN is not
    usual = float(np.median(known)) if known else 1.0
    found: dict[str, list[Weighed]] = {}
    for product, formats in surveyed.items():
        factor = matter[product.at]
        if factor > 0:
            factor = usual * (factor / usual) ** TRUST
        else:
            factor = usual
            note = "changes no output that a budget compares: its errors count as those of others"
            calibration.unit.notes.append({"node": product.node, "note": note})
        own = [replace(each, error=each.error * factor) for each in formats]
        before = found.setdefault(product.node, [])
        found[product.node] = list(map(_together, before, own)) if before else own
    return found


def _together(a: Weighed, b: Weighed) -> Weighed:
    """Two products of one node, which has one rule."""
    return Weighed(a.scheme, a.weights + b.weights, a.bits + b.bits, a.error + b.error)


def write_weighed(weighed: WeighedProducts) -> str:
    """As text to keep."""
    return json.dumps(
        {
            node: [(each.scheme.text, each.weights, each.bits, each.error) for each in formats]
            for node, formats in weighed.items()
        }
    )


def read_weighed(text: str | None) -> WeighedProducts | None:
    """None for what `write_weighed` has not written."""
    try:
        found = json.loads(text or "")
        return {
            node: [Weighed(parse_scheme(scheme), *figures) for scheme, *figures in formats]
            for node, formats in found.items()
        }
    except (AttributeError, TypeError, ValueError, RecipeError):
        return None


def _weigh(judged: Judged, feedback: Feedback) -> list[Weighed]:
    write_error(judged, feedback)
    return weigh(judged.weight, feedback, trellis=judged.product.patches is None)


class Meter(Protocol):
    """What a choice takes of a budget, in its unit."""

    def cost(self, node: str, weighed: Weighed) -> float | None:
        """What is expected of a product in a format; None where there is no kernel for it."""
        ...

    def measured(self, chosen: Chosen) -> float:
        """What all takes together."""
        ...

    def limit(self, budget: Budget) -> float: ...

    def text(self, amount: float) -> str: ...


class Bits:
    """Of the weights that are calibrated, on average."""

    def __init__(self) -> None:
        self.weights: dict[str, int] = {}

    def cost(self, node: str, weighed: Weighed) -> float:
        self.weights[node] = weighed.weights
        return weighed.bits

    def measured(self, chosen: Chosen) -> float:
        return total(chosen)

    def limit(self, budget: Budget) -> float:
        return budget.amount * sum(self.weights.values())

    def text(self, amount: float) -> str:
        hundredths = ceil(100 * amount / sum(self.weights.values()) - 1e-6)
        return f"{hundredths / 100:.2f}bpw"


class Bytes:
    """Of the library. `read` gives the recipe of a choice."""

    def __init__(
        self, costs: Costs, read: Callable[[Chosen], Recipe], calibration: Calibration
    ) -> None:
        self._costs, self._read, self._calibration = costs, read, calibration
        self._products = _by_node(costs.products({}))

    def cost(self, node: str, weighed: Weighed) -> float | None:
        sizes = [
            self._costs.bytes_of(in_format(product.spec, weighed.scheme))
            for product in self._products.get(node, ())
        ]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def measured(self, chosen: Chosen) -> float:
        recipe = self._read(chosen)
        unit = replace(self._calibration.unit, recipe=recipe.without_caches())
        given = stand_ins(self._calibration.module, unit)
        return self._costs.library_bytes(recipe, given) + RECORD_BYTES * (1 + len(chosen))

    def limit(self, budget: Budget) -> float:
        return budget.amount

    def text(self, amount: float) -> str:
        return byte_count(int(amount))


class Seconds:
    """Of all products of a run, by the cost model."""

    def __init__(self, costs: Costs, budget: Budget) -> None:
        self._costs = costs
        found = costs.products_of_rows(budget)
        self._products, self._bytes = _by_node(found), code_bytes(found)

    def cost(self, node: str, weighed: Weighed) -> float | None:
        return self._seconds(self._in_format(node, weighed.scheme), self._bytes)

    def measured(self, chosen: Chosen) -> float:
        found = [
            product
            for node, products in self._products.items()
            for product in (
                self._in_format(node, chosen[node].scheme) if node in chosen else products
            )
        ]
        seconds = self._seconds(found, code_bytes(found))
        assert seconds is not None  # each format chosen has a kernel
        return seconds

    def _in_format(self, node: str, scheme: Scheme) -> list[Product]:
        products = self._products.get(node, [])
        return [replace(p, spec=in_format(p.spec, scheme)) for p in products]

    def _seconds(self, products: list[Product], working_set: int) -> float | None:
        times = [self._costs.seconds_of(product, working_set) for product in products]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None

    def limit(self, budget: Budget) -> float:
        return budget.amount

    def text(self, amount: float) -> str:
        return f"{1e3 * amount:.3g} ms predicted"


def _by_node(products: list[Product]) -> dict[str, list[Product]]:
    found: dict[str, list[Product]] = {}
    for product in products:
        found.setdefault(product.node, []).append(product)
    return found


def _options(weighed: Mapping[str, Sequence[Weighed]], meter: Meter) -> dict[str, list[Option]]:
    options = {}
    for node, formats in weighed.items():
        options[node] = options_of([(meter.cost(node, each), each) for each in formats])
        if not options[node]:
            raise RecipeError("no width that a budget may give has a kernel", node=node)
    return options


def spend(options: Options, meter: Meter, budget: Budget) -> tuple[Chosen, str]:
    """The best choice within the budget, and what it takes, for people. Raises InputError.

    What a choice takes besides its options, the `rest`, is learned by measuring it. Where that
    grows with what is chosen, it is searched by bisection between one for which too much was chosen
    and one for which the choice was within the budget.
    """
    limit, best = meter.limit(budget), cheapest(options)
    taken = meter.measured(best)
    if taken > limit:
        raise InputError(
            f"a budget of {budget} cannot be met", hint=f"the least is {meter.text(taken)}"
        )
    rest, most, least = taken - total(best), taken, total(best)
    within: float | None = None
    beyond: float | None = None
    tried: list[tuple[Chosen, float]] = [(best, taken)]
    for _ in range(ATTEMPTS):
        chosen = allocate(options, max(limit - rest, least))
        known = [amount for each, amount in tried if each == chosen]
        taken = known[0] if known else meter.measured(chosen)
        tried.append((chosen, taken))
        learned = taken - total(chosen)
        if taken > limit:
            beyond = rest
        else:
            within = rest
            if errors(chosen) < errors(best):
                best, most = chosen, taken
            if taken >= CLOSE * limit or (beyond is None and learned >= rest):
                break
        if within is None or beyond is None:
            rest = learned
        else:
            rest = (within + beyond) / 2
    return best, meter.text(most)
