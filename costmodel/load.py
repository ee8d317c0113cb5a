"""The cost model of a target: the user's, saved by `abqc tune`; else one that comes with the
package for this CPU or GPU or the nearest; else the analytic one.

Saved models stand in the user's cache folder (`runtime/environment.py`).
"""

from __future__ import annotations

from copy import copy
from functools import cache
from pathlib import Path
from typing import TypeVar

from ..errors import ArtifactError
from ..runtime.environment import cache_folder
from .analytic import AnalyticModel
from .cpu_identity import CpuIdentity
from .gpu_analytic import GpuAnalyticModel
from .hardware import gpu_for
from .shipped import shipped_for, shipped_for_gpu

AnyModel = AnalyticModel | GpuAnalyticModel
M = TypeVar("M", AnalyticModel, GpuAnalyticModel)


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


def shipped_model(target: str, device: str = "") -> AnyModel:
    """What there is without the user's: the model that comes with the package for this CPU, or for
    the GPU of the name `device`, or the nearest; else the analytic one."""
    analytic = analytic_model(target, device)
    if isinstance(analytic, GpuAnalyticModel):
        return _shipped_gpu(analytic)
    cpu = CpuIdentity.of_this_machine()
    shipped = shipped_for(cpu)
    if cpu is None or shipped is None:
        return analytic
    try:
        model = copy(_load_cpu(shipped.path))
    except ArtifactError as error:
        return _without(analytic, error)
    model.origin = f"shipped for {shipped.name}"
    if not shipped.matches(cpu):
        model.origin += f", the nearest to {cpu.text}"
    return model


def _shipped_gpu(analytic: GpuAnalyticModel) -> GpuAnalyticModel:
    """The model of a GPU with the residual that was measured on it or on the nearest."""
    shipped = shipped_for_gpu(analytic.gpu)
    if shipped is None:
        return analytic
    try:
        analytic.residual = _load_gpu(shipped.path).residual
    except ArtifactError as error:
        return _without(analytic, error)
    analytic.origin = f"shipped for {shipped.name}"
    if shipped.name != analytic.gpu.name:
        analytic.origin += f", the nearest to {analytic.gpu.name}"
    return analytic


@cache
def _load_cpu(path: Path) -> AnalyticModel:
    return AnalyticModel.load(path)


@cache
def _load_gpu(path: Path) -> GpuAnalyticModel:
    return GpuAnalyticModel.load(path)


def _without(analytic: M, error: ArtifactError) -> M:
    analytic.warning = f"the cost model that comes with the package is not used: {error}"
    return analytic


def model_for(target: str) -> AnyModel:
    """The tuned model of a target where there is one that can be read, else `shipped_model`, which
    then says in `warning` what the matter was."""
    path = model_path(target)
    if not path.exists():
        return shipped_model(target)
    try:
        model = type(analytic_model(target)).load(path)
    except ArtifactError as error:
        fallback = shipped_model(target)
        fallback.warning = f"the tuned cost model is not used: {error}"
        return fallback
    model.origin = "tuned on this machine"
    return model
