"""Part `operators`: small models of operators with kernels of their own, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import models
from .kit import Kit
from .stand_in import device as default_device

RUNS = 3  # kernel by kernel, as a graph that others share, as one of its own


def names(kit: Kit) -> list[str]:
    return [f"{feed.model} {feed.name}" for feed in kit.operators]


def measure(kit: Kit, index: int) -> dict[str, Any]:
    """`wrong` is empty, or says what differs and in which run."""
    feed, device = kit.operators[index], default_device()
    inputs, expected = models.arrays_of(kit, feed)
    wrong, worst = [], 0.0
    with models.opened(kit.folder / "models" / feed.model, device) as model:
        for run in range(RUNS):
            given = model.run(inputs)
            outputs = dict(zip((o.name for o in model.outputs), given, strict=True))
            for name, want in expected.items():
                error = models.errors(feed, {name: want}, outputs)
                worst = max(worst, error)
                if not error <= feed.tolerance:
                    wrong.append(f"'{name}' of run {run}: error {error:.2e} of its range")
        if refused := models.graphs_missing(model, True, device):
            wrong.append(refused)
    return {
        "model": feed.model,
        "deviation": worst if np.isfinite(worst) else None,
        "tolerance": feed.tolerance,
        "wrong": "; ".join(wrong),
    }
