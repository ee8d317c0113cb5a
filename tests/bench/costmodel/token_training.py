"""The training of costmodel/token_model.py, by PyTorch."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import models
import numpy as np
import torch
from abqc.costmodel import features as feature_list
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.evaluate import spearman
from abqc.costmodel.interface import MatmulFeatures
from abqc.costmodel.token_model import (
    OUTPUTS,
    STRIDE,
    WIDTH,
    TokenModel,
    kernel_numbers,
)
from data import Data, Key, Timed, blind
from torch import nn

EMBEDDING, FIRST, SECOND, HIDDEN = 16, 32, 48, 64
RAREST = 5  # kernels that a token must be in
BATCH, EPOCHS, RATE = 64, 8, 4e-3
# Of features.py: tokens stand for the operations, and for what follows from them.
NUMBERS = (
    *feature_list.asked_names(MatmulFeatures),
    *("compute share", "memory share", "launch share", "bits", "accumulators", "row_use"),
    *("column_use", "weight_size", "blocks", "row_passes"),
)

Kernels = Mapping[Key, Mapping[str, Any]]


def predictors(
    tokens: TokenModel, kernels: Kernels, boosted: models.Predictor
) -> dict[str, models.Predictor]:
    """The rows of the table: alone, and the mean of its logarithm and that of boosted trees."""
    alone = predictor(tokens, kernels)
    return {
        "roofline x tokens": alone,
        "roofline x trees and tokens": lambda timed: np.sqrt(alone(timed) * boosted(timed)),
    }


def allocation_table(
    model: TokenModel, found: Data
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the token model's registers and spills of kernels of the tasks that are held
    out, beside guessing the median of training for the ISA."""
    keys = sorted({each.kernel for timed in found.tasks.values() for each in timed})
    training = found.described
    true = np.array([[found.kernels[key][name] for name in OUTPUTS] for key in keys])
    described = (model.describe(found.kernels[key]["tokens"], key[1]) for key in keys)
    predicted = [dataclasses.astuple(model.allocation(kernel)) for kernel in described]
    guessed = [medians(training, key[1]) for key in keys]
    rows = []
    for label, values in (("median", np.array(guessed)), ("tokens", np.array(predicted))):
        errors = np.abs(values - true).mean(axis=0)
        ranks = (spearman(values[:, i], true[:, i]) for i in range(len(OUTPUTS)))
        rows.append((label, *(f"{e:.1f} ({r:.2f})" for e, r in zip(errors, ranks, strict=True))))
    rows.append(("mean of the true ones", *(f"{mean:.1f}" for mean in true.mean(axis=0))))
    header = (f"{len(keys)} kernels, {len(training)} in training: error (rank)", *OUTPUTS)
    return header, rows


def medians(kernels: Kernels, isa: str) -> list[float]:
    own = [[row[name] for name in OUTPUTS] for key, row in kernels.items() if key[1] == isa]
    return np.median(own, axis=0).tolist()


class Network(nn.Module):
    """The arithmetic of TokenModel over batches; `lengths` are those before filling up."""

    def __init__(self, words: int, numbers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, EMBEDDING)
        self.first = nn.Conv1d(EMBEDDING, FIRST, WIDTH, STRIDE)
        self.second = nn.Conv1d(FIRST, SECOND, WIDTH, STRIDE)
        vector = 2 * SECOND + len(kernel_numbers(1, ""))
        self.kernel = nn.ModuleList([nn.Linear(vector, HIDDEN), nn.Linear(HIDDEN, len(OUTPUTS))])
        self.time = nn.ModuleList([nn.Linear(vector + numbers, HIDDEN), nn.Linear(HIDDEN, 1)])

    def describe(
        self, indices: torch.Tensor, lengths: torch.Tensor, beside: torch.Tensor
    ) -> torch.Tensor:
        x = self.embedding(indices).transpose(1, 2)
        for layer in (self.first, self.second):
            x = torch.relu(layer(x))
            lengths = (lengths - WIDTH) // STRIDE + 1
        mask = (torch.arange(x.shape[2]) < lengths[:, None])[:, None].float()
        mean = (x * mask).sum(dim=2) / lengths[:, None]
        return torch.cat([mean, (x * mask).amax(dim=2), beside], dim=1)

    def allocation(self, kernel: torch.Tensor) -> torch.Tensor:
        return self.kernel[1](torch.relu(self.kernel[0](kernel)))

    def log_residual(self, kernel: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.time[0](torch.cat([kernel, numbers], dim=1)))
        return self.time[1](hidden)[:, 0]


def fit(kernels: Kernels, timed: Sequence[Timed], epochs: int = EPOCHS) -> TokenModel:
    """A model of kernels, and of the timings of some of them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    counts = Counter(token for row in kernels.values() for token in set(row["tokens"]))
    words = ["", *sorted(token for token, count in counts.items() if count >= RAREST)]
    vocabulary = {word: i for i, word in enumerate(words)}
    asked, residuals = numbers_of(timed), log_residuals(timed)
    mean, scale = asked.mean(axis=0), np.maximum(asked.std(axis=0), 1e-3)
    helper = TokenModel(vocabulary, {})
    keys = list(kernels)
    indices = {key: helper.indices(kernels[key]["tokens"]) for key in keys}
    targets = {key: allocation_targets(kernels[key]) for key in keys}
    samples: dict[Key, list[int]] = {}
    for number, each in enumerate(timed):
        samples.setdefault(each.kernel, []).append(number)
    scaled = torch.tensor((asked - mean) / scale, dtype=torch.float32)
    wanted = torch.tensor(residuals, dtype=torch.float32)

    network = Network(len(words), asked.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    batches = -(-len(keys) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * batches)
    rng = random.Random(0)
    for _ in range(epochs):
        # Kernels of about one length together, so that little is filled up.
        rng.shuffle(keys)
        keys.sort(key=lambda key: len(indices[key]) // 64)
        starts = list(range(0, len(keys), BATCH))
        rng.shuffle(starts)
        for start in starts:
            batch = keys[start : start + BATCH]
            kernel = network.describe(*padded([indices[key] for key in batch], batch))
            aims = torch.tensor([targets[key] for key in batch])
            loss = nn.functional.smooth_l1_loss(network.allocation(kernel), aims)
            own = [(place, n) for place, key in enumerate(batch) for n in samples.get(key, [])]
            if own:
                places, numbers = (list(part) for part in zip(*own, strict=True))
                predicted = network.log_residual(kernel[places], scaled[numbers])
                loss = loss + 4 * nn.functional.smooth_l1_loss(predicted, wanted[numbers])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return TokenModel(vocabulary, arrays(network, mean, scale))


def padded(
    indices: Sequence[np.ndarray], keys: Sequence[Key]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = [len(each) for each in indices]
    filled = np.zeros((len(indices), max(lengths)), np.int64)
    for row, each in zip(filled, indices, strict=True):
        row[: len(each)] = each
    beside = [kernel_numbers(n, isa) for n, (_, isa) in zip(lengths, keys, strict=True)]
    return torch.tensor(filled), torch.tensor(lengths), torch.tensor(beside)


def allocation_targets(row: Mapping[str, Any]) -> list[float]:
    registers, spills, spilled = (row[name] for name in OUTPUTS)
    return [registers / 32, float(np.log1p(spills)), float(np.log1p(spilled))]


def numbers_of(timed: Sequence[Timed]) -> np.ndarray:
    """The values of `NUMBERS`."""
    model, names = AnalyticModel(), feature_list.names(MatmulFeatures)
    rows = [feature_list.numbers(b.features, model.estimate(b.features)) for b in map(blind, timed)]
    return np.array(rows)[:, [names.index(name) for name in NUMBERS]]


def log_residuals(timed: Sequence[Timed]) -> np.ndarray:
    estimates = AnalyticModel().predict_all([each.features for each in timed])
    return np.log([each.sample.seconds for each in timed]) - np.log(estimates)


def arrays(network: Network, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters as TokenModel has them."""
    found = {"embedding": network.embedding.weight, "mean": mean, "scale": scale}
    for name, layer in (("first", network.first), ("second", network.second)):
        found[f"{name}.w"] = layer.weight.permute(2, 1, 0).reshape(-1, layer.out_channels)
        found[f"{name}.b"] = layer.bias
    for name, layers in (("kernel", network.kernel), ("time", network.time)):
        for number, layer in enumerate(layers):
            found[f"{name}{number}.w"] = layer.weight.T
            found[f"{name}{number}.b"] = layer.bias
    return {
        name: np.asarray(v.detach().numpy() if isinstance(v, torch.Tensor) else v, np.float32)
        for name, v in found.items()
    }


def predictor(model: TokenModel, kernels: Kernels) -> models.Predictor:
    vectors: dict[Key, np.ndarray] = {}

    def vector(key: Key) -> np.ndarray:
        if key not in vectors:
            vectors[key] = model.describe(kernels[key]["tokens"], key[1])
        return vectors[key]

    def predict(timed: Sequence[Timed]) -> np.ndarray:
        described = np.array([vector(each.kernel) for each in timed])
        logs = model.log_residuals(described, numbers_of(timed))
        estimates = AnalyticModel().predict_all([each.features for each in timed])
        return np.exp(logs.astype(np.float64)) * np.array(estimates)

    return predict
