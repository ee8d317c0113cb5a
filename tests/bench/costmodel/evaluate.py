"""How well cost models choose: the table of docs/cost-model.md.

    python tests/bench/costmodel/evaluate.py FOLDER [--tokens costmodel/weights/zen4-tokens.npz]

Of tasks all of whose candidates were timed, and none of whose sizes is in training: the time of
the best candidate over that of the one picked, over that of the best among the first five; the
rank correlation within a task; the mean absolute error. Means over tasks. `widths`: training had
no weights of 3 and 6 bits, the tasks have; `ISA`: the same of AVX2. The token model is trained
on kernels of training alone, by PyTorch, and judged for `shapes`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import data
import models
from abqc.compiler.commands.table import table
from abqc.costmodel.evaluate import spearman
from abqc.costmodel.token_model import TokenModel
from data import Timed

HELD_OUT_WIDTHS = (3, 6)
HELD_OUT_ISA = "avx2"
TOP = 5

Tasks = Mapping[int, Sequence[Timed]]
Scores = list[tuple[float, float, float, float]]  # pick, best of the first five, rank, error


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=Path, help="the token model; trained if it is not there")
    args = parser.parse_args()
    found = data.load(args.folder)
    fits: dict[str, models.Fit] = {
        "roofline": models.roofline,
        "trees": models.trees_only,
        "roofline x trees, no operations": models.without_operations(models.roofline_and_trees),
        "roofline x trees": models.roofline_and_trees,
    }
    rows = []
    for name, (training, tasks) in splits(found).items():
        candidates = [len(timed) for timed in tasks.values()]
        print(f"{name}: {len(training)} timings, {len(tasks)} tasks, candidates {candidates}")
        rows += [(name, "random", *columns([random_choice(t) for t in tasks.values()]))]
        rows += [(name, "default", *columns([default_choice(t) for t in tasks.values()]))]
        rows += [(name, "measured again", *columns(measured_again(tasks)))]
        own = fits
        if args.tokens is not None and name == "shapes":
            import token_training

            if not args.tokens.exists():
                kernels = token_training.allowed(found.kernels, training)
                token_training.fit(kernels, training).save(args.tokens)
            tokens = TokenModel.load(args.tokens)
            own = fits | token_training.fits(tokens, found.kernels, models.roofline_and_trees)
            print(table(*token_training.allocation_table(tokens, found)), flush=True)
        for label, fit in own.items():
            predict = fit(training)
            rows.append((name, label, *columns(scores(predict, tasks))))
            print("  ".join(rows[-1]), flush=True)
    print(table(("held out", "model", "pick", f"best of {TOP}", "rank", "error"), rows))
    predict = models.roofline_and_trees(found.training)
    print(f"ranking 500 candidates: {1e3 * ranking_seconds(predict, found.timed):.0f} ms")


def splits(found: data.Data) -> dict[str, tuple[list[Timed], Tasks]]:
    training, tasks = found.training, found.tasks

    def split(out: Callable[[Timed], bool]) -> tuple[list[Timed], Tasks]:
        judged = {number: timed for number, timed in tasks.items() if out(timed[0])}
        return [each for each in training if not out(each)], judged

    return {
        "shapes": (training, tasks),
        "widths": split(lambda each: each.features.weight_bits in HELD_OUT_WIDTHS),
        "ISA": split(lambda each: each.features.isa == HELD_OUT_ISA),
    }


def scores(predict: models.Predictor, tasks: Tasks) -> Scores:
    return [score(predict(timed), data.seconds(timed)) for timed in tasks.values()]


def score(predicted: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float, float]:
    order = np.argsort(predicted, kind="stable")
    best = seconds.min()
    error = float(np.abs(predicted / seconds - 1).mean())
    pick, first = best / seconds[order[0]], best / seconds[order[:TOP]].min()
    return pick, first, spearman(predicted, seconds), error


def measured_again(tasks: Tasks) -> Scores:
    """A second measurement as a prediction of the first: what noise leaves possible."""
    found = []
    for timed in tasks.values():
        both = np.array([each.seconds[:2] for each in timed if len(each.seconds) > 1])
        if len(both) > 1:
            found.append(score(both[:, 1], both[:, 0]))
    return found or [(float("nan"),) * 4]


def random_choice(timed: Sequence[Timed]) -> tuple[float, float, float, float]:
    """Expected values; the best of the first five over many draws."""
    seconds = data.seconds(timed)
    best, rng = seconds.min(), np.random.default_rng(0)
    few = min(TOP, len(seconds))
    draws = [best / rng.choice(seconds, few, replace=False).min() for _ in range(2000)]
    return float((best / seconds).mean()), float(np.mean(draws)), 0.0, float("nan")


def default_choice(timed: Sequence[Timed]) -> tuple[float, float, float, float]:
    """The default schedule of the first strategy that codes of these formats can have."""
    order = ("int8", "dequantize", "float", "trellis", "trellis-float")
    seconds = data.seconds(timed)
    names = {each.features.strategy for each in timed}
    strategy = next(name for name in order if name in names)
    own = [e for e in timed if e.default and e.features.strategy == strategy]
    share = float(seconds.min() / own[0].sample.seconds)
    return share, share, float("nan"), float("nan")


def columns(found: Scores) -> tuple[str, ...]:
    """Means over tasks, as text; empty where there is nothing to say."""
    means = np.array(found).mean(axis=0)
    ranks = [rank for _, _, rank, _ in found if not np.isnan(rank)]
    pick, first, error = means[0], means[1], means[3]
    return (
        f"{pick:.1%}",
        f"{first:.1%}",
        f"{np.mean(ranks):.3f}" if ranks else "",
        "" if np.isnan(error) else f"{error:.1%}",
    )


def ranking_seconds(predict: models.Predictor, timed: Sequence[Timed]) -> float:
    """Of 500 candidates, the least of several calls."""
    many = [timed[i % len(timed)] for i in range(500)]
    times = []
    for _ in range(5):
        begin = time.thread_time()
        np.argsort(predict(many))
        times.append(time.thread_time() - begin)
    return min(times)


if __name__ == "__main__":
    main()
