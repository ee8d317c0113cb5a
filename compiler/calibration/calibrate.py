"""What a compile with calibration data does before its passes: codes come into the weight store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

import numpy as np
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.files import write_text
from abqc.compiler.job import Request
from abqc.compiler.pipeline import stages
from abqc.compiler.recipe import Recipe, parse_recipe, pattern_of
from abqc.dialects.mlir import ir
from abqc.errors import InputError, RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline
from numpy.typing import NDArray

from .budget import Budget, Option, allocate, least_bits, options_of, parse_budget
from .engine import Calibration
from .error_feedback import Feedback
from .kept import Digest, KeptCodes
from .runs import MASK, Array, Feeds
from .samples import batches

Progress = Callable[[str, int, int], None]

HINT = (
    "error feedback is for products with constant weights of floats, in no branch or loop, whose "
    "rule has gptq; compile without --calib"
)


def calibrate(request: Request, module: ir.Module, unit: Unit, progress: Progress) -> Calibration:
    """Encode the weights for which the recipe asks calibration; `module` is as it was imported.

    Runs on this CPU whatever the target is: the codes are the same for all. Raises InputError for
    unusable data.
    """
    assert request.calib is not None
    started = time.perf_counter()
    tokenizer = request.model.with_name("tokenizer.json")
    feeds = batches(request.calib, unit.inputs, tokenizer)
    own = Unit(
        store=unit.store,
        recipe=unit.recipe,
        target=CpuTarget(),
        node_kinds=unit.node_kinds,
        inputs=unit.inputs,
        outputs=unit.outputs,
        on_pass=unit.on_pass,
    )
    simplified = module.operation.clone()
    run_pipeline(simplified, stages(on_device=False)["simplified"], own)
    calibration = Calibration(
        simplified,
        own,
        feeds,
        [_mask(feed) for feed in feeds],
        request.work,
        progress=progress,
    )
    if request.budget is not None:
        unit.recipe = own.recipe = plan(calibration, parse_budget(request.budget), request)
    calibration.run(KeptCodes(_digest(simplified, unit, feeds)))
    if not calibration.errors:
        raise RecipeError("the recipe has nothing to calibrate", hint=HINT)
    if calibration.scarce is not None:
        node, rows, columns = calibration.scarce
        note = f"is calibrated with {rows} rows for {columns} columns: give more samples"
        unit.notes.append({"node": node, "note": note})
    calibration.seconds = time.perf_counter() - started
    return calibration


def plan(calibration: Calibration, budget: Budget, request: Request) -> Recipe:
    """The recipe that spends `budget` best; it is written beside the library, for people to edit.

    Activations and all other nodes are as the recipe says that was asked for.
    """
    recipe = calibration.unit.recipe
    options: dict[str, list[Option]] = {}
    weights: dict[str, int] = {}

    def visit(node: str, weight: NDArray[np.float32], feedback: Feedback) -> None:
        options[node] = options_of(weight, feedback)
        weights[node] = weight.size

    calibration.survey(visit)
    count = sum(weights.values())
    if not count:
        raise RecipeError("the recipe has nothing to calibrate", hint=HINT)
    least = least_bits(options) / count
    if least > budget.bits:
        raise InputError(
            f"a budget of {budget} cannot be met", hint=f"the least is {least + 0.005:.2f}bpw"
        )
    chosen = allocate(options, budget.bits * count)
    lines = [recipe.text, f"# chosen for --budget {budget}:"]
    for node, option in chosen.items():
        words = recipe.resolve(node, calibration.unit.node_kinds.get(node, "matmul")).words
        lines.append(f"{pattern_of(node)} {option.scheme.text} {words}")
    text = "\n".join(lines) + "\n"
    write_text(request.output.with_suffix(".recipe.txt"), text)
    return parse_recipe(text).with_calibration()


def _digest(module: ir.Operation, unit: Unit, feeds: Sequence[Feeds]) -> str:
    """The name of all that the codes depend on."""
    digest = Digest()
    text = module.get_asm()
    digest.text(text, unit.recipe.text)
    for symbol in sorted(set(re.findall(r'sym = "([^"]*)"', text))):
        digest.text(symbol)
        digest.array(unit.store.get(symbol))
    for feed in feeds:
        for name, array in sorted(feed.items()):
            digest.text(name)
            digest.array(array)
    return digest.name()


def _mask(feeds: Feeds) -> Array | None:
    """The tokens that count, where the model is told: [batch, tokens], None if all do."""
    mask = feeds.get(MASK)
    return mask if mask is not None and mask.ndim == 2 and not np.all(mask) else None
