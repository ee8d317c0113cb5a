"""Argument types and files that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abqc.compiler.files import read_arrays
from abqc.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, ...]


def shape(text: str) -> tuple[str, Shape]:
    """`x=1x128` as ("x", (1, 128)); `x=` is a scalar."""
    name, equals, sizes = text.rpartition("=")
    try:
        dims = tuple(int(size) for size in sizes.lower().split("x")) if sizes else ()
    except ValueError:
        dims = (-1,)
    if not equals or not name or any(size < 0 for size in dims):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=SIZExSIZE..., such as x=1x128")
    return name, dims


def input_file(text: str) -> tuple[str | None, Path]:
    """`x=x.npy` as ("x", Path("x.npy")); `feeds.npz`, which holds several by name, without one."""
    name, equals, path = text.partition("=")
    if text.endswith(".npz") and (not equals or Path(text).is_file()):
        return None, Path(text)
    if not equals or not name or not path:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither NAME=FILE, such as x=x.npy, nor an .npz file"
        )
    return name, Path(path)


def thread_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of threads")
    return int(text)


def add_shape(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "--shape",
        metavar="NAME=1x128",
        action="append",
        type=shape,
        default=[],
        help=f"{meaning}; may be repeated",
    )


def add_inputs(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "--input",
        metavar="NAME=FILE.npy|FILE.npz",
        action="append",
        type=input_file,
        default=[],
        help=f"{meaning}: one as .npy, or all that an .npz file names; may be repeated",
    )


def read_inputs(given: list[tuple[str | None, Path]]) -> dict[str, NDArray[Any]]:
    """The arrays of `--input`, by name; of two with one name the last. Raises InputError."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, path in given:
        arrays |= read_arrays(path) if name is None else {name: read_array(path)}
    return arrays


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        metavar="N",
        type=thread_count,
        help="number of threads (default: ABQC_NUM_THREADS, else the usable cores)",
    )


def add_huge_pages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--huge-pages",
        action="store_true",
        help="on a CPU, weights in pages of 2 MiB: less time where all are read for each token, "
        "more before the first, and perhaps twice the memory",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, or ptx-vm, which executes GPU kernels on the CPU and checks every "
        "access (default: what the model was compiled for)",
    )


def read_array(path: Path) -> NDArray[Any]:
    """The array in an .npy file. Raises InputError."""
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"{path} holds several arrays",
            hint=f"give an .npy file, or --input {path} without a name",
        )
    return array
