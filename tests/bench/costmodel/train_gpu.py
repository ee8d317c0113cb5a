"""Fit what comes with the package for a GPU to samples of it: `costmodel/weights/NAME.json`.

    python tests/bench/costmodel/train_gpu.py samples.jsonl --name h200 [--leave-out planes]

`samples.jsonl` is what the kit (docs/gpu-kit.md) or `abqc tune` has measured. Prints how well the
roofline and the roofline with a residual predict samples of a shape (and of formats) that the
residual was not fitted to; the file is written where that is better in all of: mean absolute error,
rank correlation, and the pick: the time of the best of a task's candidates over that of the one
that is put first. Means over the tasks that have several.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from abqc.compiler.commands.table import table
from abqc.costmodel import samples as sample_files
from abqc.costmodel.evaluate import spearman
from abqc.costmodel.gpu_analytic import GpuAnalyticModel
from abqc.costmodel.hardware import gpu_for
from abqc.costmodel.interface import KernelFeatures, Sample
from abqc.costmodel.shipped import WEIGHTS
from abqc.costmodel.trees import F64

Scores = tuple[float, float, float]  # error, rank correlation, pick


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--name", required=True, help="of the file")
    parser.add_argument("--leave-out", default="", help="strategies, with commas")
    args = parser.parse_args()
    without = args.leave_out.split(",")
    samples = [s for s in sample_files.read(args.samples) if features(s).strategy not in without]
    analytic = analytic_model(samples)
    plain = scores(np.array(analytic.predict_all([features(s) for s in samples])), samples)
    found = {
        "shapes": scores(held_out(samples, lambda f: (f.n, f.k)), samples),
        "formats": scores(held_out(samples, lambda f: (f.weight_bits, f.activation_bits)), samples),
    }
    rows = [(f"residual, {name} held out", *texts(each)) for name, each in found.items()]
    print(table(("model", "error", "rank", "pick"), [("roofline", *texts(plain)), *rows]))
    if any(better(plain, each) for each in found.values()):
        print("not written: the roofline alone is not worse")
        return
    analytic.fit(samples)
    trained = {
        "command": f"tests/bench/costmodel/train_gpu.py SAMPLES --name {args.name}",
        "samples": len(samples),
        "left out": args.leave_out,
    }
    path = WEIGHTS / f"{args.name}.json"
    analytic.save(path, trained)
    print(f"{path}: {path.stat().st_size} bytes, {analytic.status}")


def features(sample: Sample) -> KernelFeatures:
    assert isinstance(sample.features, KernelFeatures)
    return sample.features


def analytic_model(samples: Sequence[Sample]) -> GpuAnalyticModel:
    return GpuAnalyticModel(gpu_for(features(samples[0]).arch, samples[0].device))


def held_out(samples: Sequence[Sample], key: Callable[[KernelFeatures], Hashable]) -> F64:
    """Each sample predicted by a residual that has seen none with its key."""
    keys = [key(features(sample)) for sample in samples]
    predicted = np.empty(len(samples))
    for own in set(keys):
        model = analytic_model(samples)
        model.fit([s for s, k in zip(samples, keys, strict=True) if k != own])
        assert model.residual is not None
        width = len(model.residual.low)
        everywhere = {"low": (-np.inf,) * width, "high": (np.inf,) * width}
        model.residual = replace(model.residual, **everywhere)
        places = [place for place, k in enumerate(keys) if k == own]
        predicted[places] = model.predict_all([features(samples[place]) for place in places])
    return predicted


def scores(predicted: F64, samples: Sequence[Sample]) -> Scores:
    seconds = np.array([sample.seconds for sample in samples])
    tasks: dict[Hashable, list[int]] = {}
    for place, sample in enumerate(samples):
        f = features(sample)
        tasks.setdefault((f.m, f.n, f.k, f.weight_bits, f.activation_bits), []).append(place)
    picks = [
        seconds[places].min() / seconds[places][np.argmin(predicted[places])]
        for places in tasks.values()
        if len(places) > 1
    ]
    error = float(np.abs(predicted / seconds - 1).mean())
    return error, spearman(predicted, seconds), float(np.mean(picks))


def better(one: Scores, other: Scores) -> bool:
    return one[0] < other[0] or one[1] > other[1] or one[2] > other[2]


def texts(found: Scores) -> tuple[str, str, str]:
    return f"{found[0]:.1%}", f"{found[1]:.3f}", f"{found[2]:.1%}"


if __name__ == "__main__":
    main()
