"""What a compile with calibration data does before its passes: codes come into the weight store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.job import Request
from abqc.compiler.pipeline import stages
from abqc.dialects.mlir import ir
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline

from .engine import Calibration
from .kept import Digest, KeptCodes
from .runs import Array, Feeds
from .samples import batches

Progress = Callable[[str, int, int], None]


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
    simplified = ir.Module.parse(module.operation.get_asm(), module.context)
    run_pipeline(simplified.operation, stages(on_device=False)["simplified"], own)
    calibration = Calibration(
        simplified,
        own,
        feeds,
        [_mask(feed) for feed in feeds],
        request.work,
        kept=KeptCodes(_digest(simplified, unit, feeds)),
        progress=progress,
    )
    calibration.run()
    if not calibration.errors:
        raise RecipeError(
            "the recipe has nothing to calibrate", hint="add gptq to a rule, as in 'w4a8 gptq'"
        )
    calibration.seconds = time.perf_counter() - started
    return calibration


def _digest(module: ir.Module, unit: Unit, feeds: Sequence[Feeds]) -> str:
    """The name of all that the codes depend on."""
    digest = Digest()
    text = module.operation.get_asm()
    digest.text(text, unit.recipe.text)
    for symbol in sorted(set(re.findall(r'sym = "([^"]*)"', text))):
        digest.text(symbol)
        digest.array(unit.store.get(symbol))
    for feed in feeds:
        for name, array in sorted(feed.items()):
            digest.text(name)
            digest.array(array)
    return digest.name()


def calibration_manifest(calibration: Calibration | None) -> dict[str, Any]:
    """What `abqc inspect` shows of a calibration."""
    if calibration is None:
        return {}
    return {
        "calibration": {
            "batches": len(calibration.batches),
            "seconds": round(calibration.seconds, 1),
            "errors": {name: round(e, 6) for name, e in calibration.errors.items()},
        }
    }


def _mask(feeds: Feeds) -> Array | None:
    """The tokens that count, where the model is told: [batch, tokens], None if all do."""
    mask = feeds.get("attention_mask")
    return mask if mask is not None and mask.ndim == 2 and not np.all(mask) else None
