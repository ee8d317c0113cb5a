"""What a failing pass was given, kept so that the failure can be repeated.

A failure is a folder under `failed` in the cache folder, of which the newest KEPT stay:

    before.mlir    the IR before the pass
    unit.pickle    what else passes read: recipe, target, kernels, encodings, the path of the model

`abqc opt before.mlir --unit unit.pickle --passes NAME` repeats it. Weights are not copied: they are
read from the model again.
"""

from __future__ import annotations

import pickle
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from abqc.dialects.weight_store import WeightStore
from abqc.errors import CompileError, InputError
from abqc.passes.infrastructure import PassFailure, Unit
from abqc.runtime.environment import cache_folder

KEPT = 10
IR_FILE = "before.mlir"
UNIT_FILE = "unit.pickle"

# The fields of a unit that passes read, and that pickle as they are.
_PLAIN = (
    "recipe",
    "node_kinds",
    "encodings",
    "weights",
    "kernels",
    "inputs",
    "outputs",
    "kept_outputs",
    "strided_inputs",
    "messages",
)


@dataclass(frozen=True)
class Source:
    """Where a unit comes from: the model (an absolute path), pinned shapes, the target's name, for
    which CPUs there are kernels, and whether the last token's logits alone are kept."""

    model: Path
    shapes: dict[str, tuple[int, ...]]
    target: str
    cpu: str | None = None
    last_logits: bool = False


@dataclass(frozen=True)
class SavedUnit:
    """`derived` are the shapes and types of stored arrays that passes have made of weights."""

    source: Source
    fields: dict[str, Any]
    outlined: str
    derived: dict[str, tuple[tuple[int, ...], str]]


def keep(failure: PassFailure, unit: Unit | None = None, source: Source | None = None) -> None:
    """Save what `failure.name` was given, and say in the failure's hint how to repeat it.

    Without `unit` and `source` the IR alone is saved. Where the cache folder cannot be written, the
    hint says so.
    """
    try:
        folder = _new_folder(failure.name)
        path = folder / IR_FILE
        path.write_text(failure.before)
        line = f"abqc opt {path}"
        if unit is not None and source is not None:
            (folder / UNIT_FILE).write_bytes(pickle.dumps(_saved(unit, source)))
            line += f" --unit {folder / UNIT_FILE}"
    except OSError as error:
        failure.hint = f"its IR could not be kept ({error.strerror}: {cache_folder()})"
        return
    failure.hint = f"the IR is in {path}; repeat with: {line} --passes '{failure.name}'"


def load_unit(path: Path, work: Path) -> Unit:
    """The unit saved at `path`; weights are imported from its model into `work`.

    The file is pickled: load none that others made. Raises InputError if it cannot be read, and
    what importing the model raises.
    """
    from abqc.compiler.build import resolve_target
    from abqc.compiler.onnx_import.importer import import_model

    try:
        saved: SavedUnit = pickle.loads(path.read_bytes())
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not saved.source.model.is_file():
        raise CompileError(f"{saved.source.model} is gone: the passes need its weights")
    imported = import_model(
        saved.source.model,
        shapes=saved.source.shapes,
        work_dir=work,
        keep_codes=True,
        last_logits=saved.source.last_logits,
    )
    unit = Unit(
        **saved.fields,
        store=imported.store,
        target=resolve_target(saved.source.target, saved.source.cpu),
        outlined=saved.outlined,
    )
    for symbol, (shape, dtype) in saved.derived.items():
        if symbol not in imported.store:
            _add_zeros(imported.store, symbol, shape, np.dtype(dtype))
    return unit


def _saved(unit: Unit, source: Source) -> SavedUnit:
    return SavedUnit(
        source=source,
        fields={name: getattr(unit, name) for name in _PLAIN},
        outlined=unit.outlined_text,
        derived={
            symbol: (unit.store.shape(symbol), unit.store.dtype(symbol).str)
            for symbol in unit.store
        },
    )


def _add_zeros(store: WeightStore, symbol: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A stand-in for an array that no pass reads, only knows the size of."""
    store.add_lazy(symbol, shape, dtype, lambda: np.zeros(shape, dtype))


def _new_folder(name: str) -> Path:
    """A fresh folder for a failure of the pass `name`; the oldest ones make room for it."""
    root = cache_folder() / "failed"
    root.mkdir(parents=True, exist_ok=True)
    old = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for folder in old[: max(0, len(old) - KEPT + 1)]:
        shutil.rmtree(folder, ignore_errors=True)
    label = "".join(c if c.isalnum() else "-" for c in name)[:40]
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}-{label}"
    folder.mkdir()
    return folder
