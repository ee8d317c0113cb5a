"""Codes that a calibration has made, kept on disk: one that was interrupted goes on where it was.

An entry's folder is named by a digest of all that the codes depend on: the model, the recipe, the
data and our own sources; so another target of the same model takes its codes from there too. Of
many folders the least recently used ones go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import abqc.dialects
import abqc.passes
import numpy as np
from abqc.compiler.files import replacing
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.runtime.environment import cache_folder

from .error_feedback import EncodedWeight

LIMIT = 8  # folders, one for each calibration

# What a recipe means, how weights are encoded and what their products read is said beside this.
_SOURCES = (
    Path(__file__).parent / "learn",
    Path(__file__).parents[1] / "evaluation",
    *Path(__file__).parents[:2],
    Path(abqc.dialects.__file__).parent,
)
_PASSES = Path(abqc.passes.__file__).parent


class Digest:
    """What the codes depend on, taken in piece by piece."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(sources_digest(), digest_size=20)

    def text(self, *parts: str) -> None:
        for part in parts:
            self._hash.update(part.encode() + b"\0")

    def array(self, array: np.ndarray) -> None:
        self.text(str(array.dtype), str(array.shape))
        if array.size:
            self._hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def name(self) -> str:
        return self._hash.hexdigest()


@cache
def sources_digest() -> bytes:
    """Of all that says what is calibrated how."""
    digest = hashlib.sha256()
    files = [path for folder in _SOURCES for path in sorted(folder.glob("*.py"))]
    for path in [*files, *sorted(_PASSES.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.digest()


class KeptCodes:
    """One calibration's codes by product. A folder that cannot be used is empty and stays so."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._all = folder or cache_folder() / "calibration"
        self.folder = self._all / name
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)
            _remove_old(self._all)

    def get(self, product: str, scheme: Scheme) -> EncodedWeight | None:
        """What was made of a weight; None where there is nothing, or a damaged file."""
        try:
            with np.load(self._path(product), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            tensor = QuantizedTensor(
                found["codes"],
                found["scale"],
                found.get("zero"),
                scheme,
                float(found["tensor_scale"]),
                found.get("symbols"),
            )
            activations = found.get("activations")
            return EncodedWeight(
                tensor,
                float(found["error"]),
                found.get("bias"),
                None if activations is None else (float(activations[0]), float(activations[1])),
                found.get("shift"),
                found.get("balance"),
            )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def put(self, product: str, result: EncodedWeight) -> None:
        tensor, activations = result.tensor, result.activations
        arrays = {
            "codes": tensor.codes,
            "scale": tensor.scale,
            "zero": tensor.zero,
            "tensor_scale": np.float64(tensor.tensor_scale),
            "symbols": tensor.symbols,
            "error": np.float64(result.relative_error),
            "bias": result.bias,
            "shift": result.shift,
            "balance": result.balance,
            "activations": None if activations is None else np.array(activations),
        }
        present = {name: array for name, array in arrays.items() if array is not None}
        with contextlib.suppress(OSError), replacing(self._path(product)) as file:
            np.savez(file, **present)  # type: ignore[arg-type]

    def get_scale(self, symbol: str) -> tuple[float, float] | None:
        """A scale and zero point; None where there are none, or a damaged file."""
        try:
            scale, zero = np.load(self._path(symbol), allow_pickle=False)["activations"]
        except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile):
            return None
        return float(scale), float(zero)

    def put_scale(self, symbol: str, scale: float, zero: float) -> None:
        with contextlib.suppress(OSError), replacing(self._path(symbol)) as file:
            np.savez(file, activations=np.array([scale, zero]))  # type: ignore[arg-type]

    def get_text(self, name: str) -> str | None:
        """None where there is none."""
        try:
            return self._path(name).with_suffix(".txt").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def put_text(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError), replacing(self._path(name).with_suffix(".txt")) as file:
            file.write(text.encode())

    def _path(self, symbol: str) -> Path:
        return self.folder / (hashlib.sha256(symbol.encode()).hexdigest()[:32] + ".npz")


def _remove_old(folder: Path) -> None:
    entries: Iterable[Path] = sorted(
        folder.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True
    )
    for entry in list(entries)[LIMIT:]:
        shutil.rmtree(entry, ignore_errors=True)
