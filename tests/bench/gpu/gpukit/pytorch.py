"""PyTorch, where it is installed and finds the GPU."""

from __future__ import annotations

from typing import Any

from abqc.errors import AbqcError


class NoPyTorch(AbqcError):
    """It is not here: no failure."""


def pytorch() -> Any:
    """The module `torch`; NoPyTorch says why it is of no use here."""
    try:
        import torch
    except ImportError as error:
        raise NoPyTorch("PyTorch is not installed") from error
    if not torch.cuda.is_available():
        raise NoPyTorch("PyTorch finds no GPU")
    return torch
