"""What a compile with calibration data does before its passes: codes come into the weight store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.evaluation.samples import MASK
from abqc.compiler.job import Request
from abqc.compiler.pipeline import stages
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, run_pipeline, walk

from .budget import parse_budget
from .engine import Calibration
from .kept import Digest, KeptCodes
from .plan import nothing_to_calibrate, plan
from .runs import Array, Feeds
from .samples import batches
from .sensitivity import ELEMENTS, SAMPLES, Sensitivities

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
        recipe=unit.recipe.without_caches(),
        target=CpuTarget(),
        node_kinds=unit.node_kinds,
        inputs=unit.inputs,
        outputs=unit.outputs,
        on_pass=unit.on_pass,
        strict=unit.strict,
    )
    simplified = module.operation.clone()
    run_pipeline(simplified, stages(on_device=False)["simplified"], own)
    own.notes.clear()  # the model's own passes will say the same
    calibration = Calibration(
        simplified,
        own,
        feeds,
        [_mask(feed) for feed in feeds],
        request.work,
        progress=progress,
        workers=request.calib_workers,
    )
    if request.budget is not None:
        budget = parse_budget(request.budget)
        samples = batches(request.calib, unit.inputs, tokenizer, ELEMENTS)
        every = -(-len(samples) // SAMPLES)
        samples = samples[every // 2 :: every]
        kept = KeptCodes(_digest(simplified, unit, feeds))
        with tempfile.TemporaryDirectory(dir=request.work, prefix="sensitivity-") as folder:
            weights = Sensitivities(
                *(simplified, own, samples, [_mask(feed) for feed in samples]),
                folder=Path(folder),
                workers=request.calib_workers,
                progress=progress,
            )
            parts = budget, request, unit.recipe, progress
            unit.recipe = plan(calibration, weights, kept, *parts)
        own.recipe = unit.recipe.without_caches()
    calibration.run(KeptCodes(_digest(simplified, unit, feeds)))
    unit.notes += own.notes
    if not calibration.errors and not calibration.scales:
        raise nothing_to_calibrate()
    if calibration.scarce is not None:
        node, rows, columns = calibration.scarce
        note = f"is calibrated with {rows} rows for {columns} columns: give more samples"
        unit.notes.append({"node": node, "note": note})
    calibration.seconds = time.perf_counter() - started
    return calibration


def _digest(module: ir.Operation, unit: Unit, feeds: Sequence[Feeds]) -> str:
    """The name of all that the codes depend on."""
    digest = Digest()
    digest.text(module.get_asm(), unit.recipe.text)
    weights = walk(module, "abq.weight")
    for symbol in sorted({ir.StringAttr(op.attributes["sym"]).value for op in weights}):
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
