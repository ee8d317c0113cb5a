"""The steps of an optimizer over the samples of one block. Needs PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from abqc.compiler.calibration.segments import value_name

from .evaluate import Evaluator
from .losses import attention_loss, distribution_loss
from .rounded_block import RoundedBlock
from .samples import Sample, Samples
from .settings import LearnSettings

Tensor = Any


SLOWER = (1.0, 0.25)  # parts of the rates that are tried


def train(
    block: RoundedBlock, run: Evaluator, samples: Samples, settings: LearnSettings
) -> tuple[float, float]:
    """Learn the parameters of `block`, of which `run` is the function; the mean loss before and
    after. Steps that do not improve on the beginning are undone, and smaller ones tried."""
    parameters = block.parameters()
    start = [each.detach().clone() for each in parameters]
    before = _mean_loss(block, run, samples)
    for part in SLOWER:
        _descend(block, run, samples, settings, part)
        after = _mean_loss(block, run, samples)
        if after < before:
            return before, after
        with torch.no_grad():
            for each, first in zip(parameters, start, strict=True):
                each.copy_(first)
    return before, before


def _descend(
    block: RoundedBlock, run: Evaluator, samples: Samples, settings: LearnSettings, part: float
) -> None:
    """All epochs, in which each sample is a step, at `part` of the rates."""
    optimizer = torch.optim.Adam(_groups(block, settings, part))
    steps = settings.epochs * len(samples)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(0)
    for _ in range(settings.epochs):
        for number in rng.permutation(len(samples)):
            optimizer.zero_grad()
            _loss(block, run, samples[number]).backward()
            optimizer.step()
            schedule.step()


def _groups(block: RoundedBlock, settings: LearnSettings, part: float) -> list[dict[str, Any]]:
    """Parameters by their rates."""
    rates = (
        (block.range_parameters(), settings.range_rate),
        (list(block.factors.values()), settings.balance_rate),
        (block.correction_parameters(), settings.correction_rate),
    )
    return [{"params": each, "lr": part * rate} for each, rate in rates if each]


def _mean_loss(block: RoundedBlock, run: Evaluator, samples: Samples) -> float:
    with torch.no_grad():
        losses = [float(_loss(block, run, sample)) for sample in samples]
    return sum(losses) / len(losses)


def _loss(block: RoundedBlock, run: Evaluator, sample: Sample) -> Tensor:
    made = run(sample.feeds)
    block.forget()
    total = torch.zeros(())
    for id_, value in sample.wanted.items():
        found, wanted = sample.rows(made[value_name(id_)]), sample.rows(value)
        if id_ in sample.own:
            total = total + distribution_loss(found, wanted, sample.rows(sample.own[id_]))
        else:
            total = total + attention_loss(found, wanted)
    return total
