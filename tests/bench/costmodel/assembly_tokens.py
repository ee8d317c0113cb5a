"""The sequence model of costmodel/token_model.py, trained to say what the assembler makes of GPU
kernels, for the table of train_assembly.py. It is not shipped: a kernel must be emitted first."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from abqc.costmodel import assembly
from abqc.costmodel.token_model import SHORTEST, UNKNOWN
from gpu_assembly_data import Assembled, Expected, Predictor
from token_training import BATCH, RAREST, RATE, Network
from torch import nn

EPOCHS = 15
LONGEST = 512  # tokens of a kernel that are looked at
REGISTERS = 64.0  # what registers are divided by


def fit(training: Sequence[Assembled]) -> Predictor:
    """Trained on what `training` has; kernels without a loop count for the rest alone."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    counts = Counter(token for kernel in training for token in set(kernel.row["tokens"]))
    words = ["", *sorted(token for token, count in counts.items() if count >= RAREST)]
    vocabulary = {word: i for i, word in enumerate(words)}
    network = Network(len(words), 1)
    parts = [network.embedding, network.first, network.second, network.kernel]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-3)
    kernels = list(training)
    batches = -(-len(kernels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * batches)
    rng = random.Random(0)
    for _ in range(EPOCHS):
        rng.shuffle(kernels)
        for start in range(0, len(kernels), BATCH):
            batch = kernels[start : start + BATCH]
            found = network.allocation(network.describe(*_inputs(batch, vocabulary)))
            slots = torch.tensor([kernel.slots for kernel in batch])
            loops = ~slots.isnan()
            registers = torch.tensor([kernel.registers / REGISTERS for kernel in batch])
            spills = torch.tensor([float(kernel.spills) for kernel in batch])
            loss = nn.functional.smooth_l1_loss(found[:, 0], registers, beta=0.1)
            loss = loss + 0.3 * nn.functional.binary_cross_entropy_with_logits(found[:, 1], spills)
            if loops.any():
                logs = slots[loops].log()
                loss = loss + nn.functional.smooth_l1_loss(found[loops, 2], logs, beta=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def predict(asked: Sequence[Assembled]) -> list[Expected]:
        results = []
        with torch.no_grad():
            for start in range(0, len(asked), BATCH):
                inputs = _inputs(asked[start : start + BATCH], vocabulary)
                for values in network.allocation(network.describe(*inputs)).tolist():
                    registers = round(REGISTERS * values[0])
                    results.append(Expected(registers, values[1] > 0, float(np.exp(values[2]))))
        return results

    return predict


def _inputs(
    kernels: Sequence[Assembled], vocabulary: dict[str, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of tokens, their numbers, and what stands beside the tokens of a kernel."""
    tokens = [kernel.row["tokens"][:LONGEST] for kernel in kernels]
    lengths = [max(len(each), SHORTEST) for each in tokens]
    indices = np.full((len(kernels), max(lengths)), UNKNOWN, np.int64)
    for row, each in zip(indices, tokens, strict=True):
        row[: len(each)] = [vocabulary.get(token, UNKNOWN) for token in each]
    beside = [_beside(kernel, len(kernel.row["tokens"])) for kernel in kernels]
    return torch.tensor(indices), torch.tensor(lengths), torch.tensor(beside)


def _beside(kernel: Assembled, length: int) -> list[float]:
    numbers = assembly.row(kernel.code, (), kernel.target, kernel.code.bound)
    return [float(np.log2(length)) / 8, numbers[0] / 100, numbers[assembly.CAP] / 256]
