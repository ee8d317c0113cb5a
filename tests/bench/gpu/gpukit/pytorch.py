"""PyTorch, where it is installed and finds the GPU."""

from __future__ import annotations

from typing import Any

from abqc.errors import AbqcError


def pytorch() -> Any:
    """The module `torch`; AbqcError says why it is of no use here."""
    try:
        import torch
    except ImportError as error:
        raise AbqcError("PyTorch is not installed") from error
    if not torch.cuda.is_available():
        raise AbqcError("PyTorch finds no GPU")
    return torch
