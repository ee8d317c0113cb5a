"""Tokenizers of published models: the file tokenizer.json, read by the package `tokenizers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abqc.errors import AbqcError, InputError

BESIDE = "a text is cut into tokens by the tokenizer.json beside the model"


def load_tokenizer(path: Path, *, hint: str = BESIDE) -> Any:
    """A `tokenizers.Tokenizer` that neither pads nor cuts off.

    Raises InputError, with `hint` where there is no file, and AbqcError without the package.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise AbqcError(
            "a text needs the package tokenizers, which is missing",
            hint="install it with `pip install tokenizers`",
        ) from error
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint=hint)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # a class of its own, derived from Exception
        raise InputError(f"cannot read {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
