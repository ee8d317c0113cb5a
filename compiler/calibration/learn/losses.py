"""The losses of ABQ-LLM (Zeng et al. 2024, arXiv 2408.08554, section 3.2), in PyTorch."""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any

LEAST = 1e-6  # a cosine or probability counts as no less


def distribution_loss(y: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
    """The distribution correction loss, DLC: -log cos(y, wanted) - log cos(y, own).

    Of rows [R, C], a quantized block's outputs: `wanted` are what the float model has there, `own`
    what the float block makes of the quantized model's inputs. Cosines are means over rows.
    """
    return -torch.log(_cosine(y, wanted)) - torch.log(_cosine(y, own))


def _cosine(a: Tensor, wanted: Tensor) -> Tensor:
    """The mean over rows; those that are wanted to be zeros have no direction."""
    some = wanted.any(1)
    if not some.any():
        return torch.ones(())
    found = torch.nn.functional.cosine_similarity(a[some], wanted[some], dim=1)
    return found.mean().clamp_min(LEAST)


def attention_loss(p: Tensor, wanted: Tensor) -> Tensor:
    """The attention-aware loss, AKL: KL(wanted | p) + KL(p | wanted), the mean over rows [R, T] of
    probabilities."""
    logarithms = torch.log(wanted.clamp_min(LEAST)) - torch.log(p.clamp_min(LEAST))
    return ((wanted - p) * logarithms).sum(1).mean()
