"""Training of a network that says how likely each count of registers is (register_counts.py)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from abqc.costmodel.dense_network import F32, DenseNetwork, Layer
from abqc.costmodel.register_counts import BINS
from abqc.costmodel.trees import F64

WIDTH, DEPTH, DROPPED = 72, 3, 0.15
EPOCHS, BATCH, RATE, DECAY = 90, 192, 4e-3, 1e-2
BLUR = 3.0  # registers: neighbouring counts are nearly as good


def fit(inputs: F32, registers: F64, seed: int) -> DenseNetwork:
    """Of what the network looks at of kernels (NumberInputs), and counts."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    x = torch.tensor(inputs)
    distance = torch.tensor(registers[:, None] - BINS, dtype=torch.float32)
    likely = torch.softmax(-(distance**2) / (2 * BLUR * BLUR), dim=1)
    model = torch.nn.Sequential(*_layers(x.shape[1]))
    batches = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=EPOCHS * batches, pct_start=0.15
    )
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for batch in order[: batches * BATCH].reshape(batches, BATCH):
            scores = torch.log_softmax(model(x[batch]), dim=1)
            loss = -(likely[batch] * scores).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    layers = tuple(
        Layer.of(part.weight.detach().numpy().T, part.bias.detach().numpy())
        for part in model
        if isinstance(part, torch.nn.Linear)
    )
    return DenseNetwork(layers)


def _layers(width: int) -> Iterator[torch.nn.Module]:
    for _ in range(DEPTH):
        yield torch.nn.Linear(width, WIDTH)
        yield torch.nn.SiLU()
        yield torch.nn.Dropout(DROPPED)
        width = WIDTH
    yield torch.nn.Linear(width, len(BINS))
