"""Calibration data: from files to checked feeds of the model, a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.evaluation.metrics import split_windows
from abqc.compiler.evaluation.samples import MASK
from abqc.compiler.evaluation.text import tokenize
from abqc.compiler.feeds import Spec, make_feeds, resolve_shapes
from abqc.compiler.files import read_arrays
from abqc.errors import InputError
from abqc.runtime.element_types import by_name, is_float, numpy_dtype
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = dict[str, Array]

ELEMENTS_IN_A_RUN = 2048
TEXT_WINDOWS, TEXT_TOKENS = 128, 512
HINT = "an .npz file holds an array for each input, by name, whose first axis counts samples"


def read_samples(path: Path) -> Iterator[tuple[str, Feeds]]:
    """The arrays of an .npz file, or of those in a folder in the order of their names.

    Each comes with the name of its file, for messages. Raises InputError.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"the folder {path} holds no .npz file", hint=HINT)
    for file in files:
        yield str(file), _read(file)


def _read(file: Path) -> Feeds:
    if not file.is_file():
        raise InputError(f"there is no calibration file {file}")
    return read_arrays(file, f"the calibration file {file}")


def write_samples(samples: Mapping[str, Any] | Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """What Python gives as calibration data, as a folder that `read_samples` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [samples] if isinstance(samples, Mapping) else samples
    for number, part in enumerate(parts):
        np.savez(folder / f"{number:06d}.npz", **{k: np.asarray(v) for k, v in part.items()})  # type: ignore[arg-type]
    return folder


def text_samples(path: Path, tokenizer: Path) -> Feeds:
    """Windows of a text as `input_ids` [windows, tokens], spread evenly over it."""
    ids = tokenize(path, tokenizer)
    windows = split_windows(ids, TEXT_TOKENS)
    if not len(windows):
        raise InputError(
            f"{path} has {len(ids)} tokens, less than a window of {TEXT_TOKENS}",
            hint=f"{TEXT_WINDOWS} windows are enough; take a text of {TEXT_WINDOWS // 8} at least",
        )
    count = min(TEXT_WINDOWS, len(windows))
    return {"input_ids": windows[np.arange(count) * len(windows) // count]}


def batches(
    path: Path,
    inputs: list[Spec],
    tokenizer: Path | None = None,
    elements: int = ELEMENTS_IN_A_RUN,
) -> list[Feeds]:
    """Feeds of the whole model, a few samples in each: `elements` of the largest input, or one.

    A file that is no .npz is a text for a language model, which `tokenizer` makes ids of.

    Masks, positions, token types and caches that the data lack are those of a first, whole
    sequence. Raises InputError for data of wrong names, types or shapes, that are not finite, or
    empty.
    """
    found: list[Feeds] = []
    if tokenizer is not None and path.is_file() and path.suffix != ".npz":
        samples: Iterable[tuple[str, Feeds]] = [(str(path), text_samples(path, tokenizer))]
    else:
        samples = read_samples(path)
    for name, arrays in samples:
        found += _cut(name, _checked(name, arrays, inputs), inputs, elements)
    if not found:
        raise InputError(f"the calibration data {path} are empty", hint=HINT)
    return found


def _checked(file: str, arrays: Feeds, inputs: list[Spec]) -> Feeds:
    known = {spec.name: spec for spec in inputs}
    checked: Feeds = {}
    for name, array in arrays.items():
        if name not in known:
            raise InputError(
                f"{file}: the model has no input '{name}'",
                hint="its inputs are " + ", ".join(known),
            )
        checked[name] = _array(file, array, known[name])
    counts = {name: len(array) for name, array in checked.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{file}: the arrays differ in their number of samples: {counts}")
    return checked


def _array(file: str, array: Array, spec: Spec) -> Array:
    expected = numpy_dtype(spec.dtype)
    name = f"{file}: '{spec.name}'"
    if array.dtype != expected:
        if array.dtype.kind not in "iu" or expected.kind not in "iu":
            raise InputError(f"{name} has type {array.dtype}, the input has {expected}")
        array = array.astype(expected)
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size or axis == 0
        for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True))
    )
    if array.ndim == 0 or not fits:
        raise InputError(f"{name} has shape {array.shape}, the input has {list(spec.shape)}")
    if is_float(spec.dtype) and not np.isfinite(array.astype(np.float32)).all():
        raise InputError(f"{name} holds NaN or infinity")
    return array


def _cut(file: str, arrays: Feeds, inputs: list[Spec], elements: int) -> list[Feeds]:
    if not arrays or not len(next(iter(arrays.values()))):
        return []
    fixed = [spec.shape[0] for spec in inputs if spec.name in arrays and spec.shape]
    count = len(next(iter(arrays.values())))
    largest = max(array[0].size for array in arrays.values())
    step = next((dim for dim in fixed if isinstance(dim, int)), 0)
    step = step or max(1, min(count, elements // max(largest, 1)))
    whole = count - count % step if any(isinstance(dim, int) for dim in fixed) else count
    tokens = _padded_size(arrays, inputs)
    if tokens is not None:  # samples of alike lengths together, so that little is padding
        order = np.argsort(_lengths(arrays[MASK]), kind="stable")
        arrays = {name: array[order] for name, array in arrays.items()}
    found = []
    for begin in range(count - whole, count, step):  # of sorted samples the shortest are left out
        part = {name: array[begin : begin + step] for name, array in arrays.items()}
        if tokens is not None:
            part = _without_padding(part, inputs, tokens)
        found.append(_complete(file, part, inputs))
    return found


def _padded_size(arrays: Feeds, inputs: list[Spec]) -> str | None:
    """The name of the size of the mask's tokens, where samples may be padded to any.

    None where an input has as many of something that has another name.
    """
    mask = arrays.get(MASK)
    if mask is None or mask.ndim != 2 or not mask.size:
        return None
    shapes = {spec.name: spec.shape for spec in inputs}
    name = shapes[MASK][1]
    counts = mask.shape[1]
    alike = {
        dim
        for key, array in arrays.items()
        for dim, size in zip(shapes[key][1:], array.shape[1:], strict=True)
        if size == counts
    }
    return name if isinstance(name, str) and name.isidentifier() and alike == {name} else None


def _lengths(mask: Array) -> NDArray[np.int64]:
    """How many tokens of each sample [samples, tokens] are not padding behind the last one."""
    behind = np.argmax(mask[:, ::-1] != 0, axis=1)
    return np.where(mask.any(axis=1), mask.shape[1] - behind, 1)


def _without_padding(arrays: Feeds, inputs: list[Spec], tokens: str) -> Feeds:
    """The samples without the tokens at the end that the mask hides in all of them."""
    longest = int(_lengths(arrays[MASK]).max(initial=1))
    shapes = {spec.name: spec.shape for spec in inputs}
    return {
        name: array[tuple(slice(longest if dim == tokens else None) for dim in shapes[name])]
        for name, array in arrays.items()
    }


def _complete(file: str, arrays: Feeds, inputs: list[Spec]) -> Feeds:
    missing = [spec for spec in inputs if spec.name not in arrays]
    for spec in missing:
        if not _has_default(spec):
            raise InputError(f"{file} has no array for input '{spec.name}'", hint=HINT)
    if not missing:
        return arrays
    shapes = resolve_shapes(inputs, {name: array.shape for name, array in arrays.items()})
    made = make_feeds(missing, {spec.name: shapes[spec.name] for spec in missing})
    return arrays | made


def _has_default(spec: Spec) -> bool:
    """Whether an input has a value that means a first, whole sequence."""
    name = spec.name.lower()
    if name.startswith("past"):
        return True
    words = ("mask", "position", "type", "segment")
    return by_name(spec.dtype).is_integer and any(word in name for word in words)
