"""The cost model of a target: the one that `abqc tune` has saved on this machine, or the analytic.

Saved models stand in the user's cache folder (`runtime/environment.py`).
"""

from __future__ import annotations

from pathlib import Path

from ..runtime.environment import cache_folder
from .analytic import AnalyticModel
from .gpu_analytic import GpuAnalyticModel
from .hardware import gpu_for

AnyModel = AnalyticModel | GpuAnalyticModel


def model_path(target: str) -> Path:
    """The file of the tuned model of `cpu`, `sm_90a`, ..."""
    return cache_folder() / "cost" / f"{target}.json"


def samples_path(target: str) -> Path:
    """The file that collects what was measured for a target."""
    return cache_folder() / "cost" / f"{target}.jsonl"


def analytic_model(target: str, device: str = "") -> AnyModel:
    """The model without measurements; for a GPU of the name `device` where that is described.
    CompileError for a target that is not described."""
    return AnalyticModel() if target == "cpu" else GpuAnalyticModel(gpu_for(target, device))


def model_for(target: str) -> AnyModel:
    """The tuned model of a target where there is one. ArtifactError where it cannot be read."""
    path = model_path(target)
    model = analytic_model(target)
    return type(model).load(path) if path.exists() else model
