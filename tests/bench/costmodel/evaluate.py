"""How well cost models choose: the table of docs/cost-model.md.

    python tests/bench/costmodel/evaluate.py FOLDER [--tokens costmodel/weights/zen4-tokens.npz]

Of tasks all of whose candidates were timed, and none of whose sizes is in training: the time of
the best candidate over that of the one picked, over that of the best among the first five, over
that of the best of five that are unlike each other (costmodel/shortlist.py); the rank correlation
within a task, and that of those candidates which differ by more than the noise; the mean absolute
error. Means over tasks. Candidates are those of the best instruction set of a task; `every ISA`:
of all that such a CPU has. `widths`: training had no weights of 3 and 6 bits, the tasks have;
`ISA`: the same of AVX2. The token model is trained on kernels of training alone, by PyTorch, and
judged for `shapes`.

Times are medians of all measurements. `measured again`: each measurement as a prediction of the
median of the others, which is what noise leaves possible.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import data
import models
from abqc.compiler.commands.table import table
from abqc.costmodel.evaluate import spearman
from abqc.costmodel.shortlist import shortlist
from abqc.costmodel.token_model import TokenModel
from data import Timed

HELD_OUT_WIDTHS = (3, 6)
HELD_OUT_ISA = "avx2"
TOP = 5
APART = (
    3  # standard deviations of the measurements of a candidate: differences beyond are not noise
)
FEWEST = 4  # candidates apart that have ranks worth a number

Tasks = Mapping[int, Sequence[Timed]]


@dataclass(frozen=True)
class Score:
    """Of a task; nan where there is none."""

    pick: float
    best_of_first: float
    best_of_unlike: float
    rank: float = math.nan
    rank_apart: float = math.nan
    error: float = math.nan


Scores = list[Score]
COLUMNS = {  # with their formats
    "pick": ".1%",
    "best_of_first": ".1%",
    "best_of_unlike": ".1%",
    "rank": ".3f",
    "rank_apart": ".3f",
    "error": ".1%",
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=Path, help="the token model; trained if it is not there")
    args = parser.parse_args()
    found = data.load(args.folder)
    rows: list[tuple[str, ...]] = []
    for name, (training, tasks) in splits(found).items():
        boosted = models.roofline_and_trees(training)
        fitted = {
            "roofline": models.roofline,
            "trees": models.trees_only(training),
            "roofline x trees, no operations": models.without_operations(boosted),
            "roofline x trees": boosted,
        }
        if name != "shapes":
            rows += judged(name, tasks, fitted)
            continue
        milliseconds = 1e3 * ranking_seconds(models.without_operations(boosted), found.timed)
        if args.tokens is not None:
            import token_training

            if not args.tokens.exists():
                token_training.fit(found.described, training).save(args.tokens)
            tokens = TokenModel.load(args.tokens)
            fitted |= token_training.predictors(tokens, found.kernels, boosted)
            print(table(*token_training.allocation_table(tokens, found)), flush=True)
        rows += judged(name, tasks, fitted)
        rows += judged("shapes, every ISA", found.spaces, fitted)
    of_five = (f"best of {TOP}", f"of {TOP} unlike")
    header = ("held out", "model", "pick", *of_five, "rank", "rank apart", "error")
    print(table(header, rows))
    print(f"ranking 500 candidates: {milliseconds:.0f} ms")


def judged(
    name: str, tasks: Tasks, fitted: Mapping[str, models.Predictor]
) -> list[tuple[str, ...]]:
    """Rows of the table."""
    candidates = [len(timed) for timed in tasks.values()]
    print(f"{name}: {len(tasks)} tasks, {sum(candidates)} candidates {candidates}")
    rows = [
        (name, "random", *columns([random_choice(t) for t in tasks.values()])),
        (name, "default", *columns([default_choice(t) for t in tasks.values()])),
        (name, "measured again", *columns(measured_again(tasks))),
    ]
    for label, predict in fitted.items():
        rows.append((name, label, *columns(scores(predict, tasks))))
        print("  ".join(rows[-1]), flush=True)
    return rows


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
    return [score(timed, predict(timed), data.seconds(timed)) for timed in tasks.values()]


def score(timed: Sequence[Timed], predicted: np.ndarray, seconds: np.ndarray) -> Score:
    order = np.argsort(predicted, kind="stable")
    unlike = shortlist([each.features for each in timed], predicted.tolist(), TOP)
    best = seconds.min()
    kept = apart(seconds, APART * noise(timed))
    return Score(
        pick=best / seconds[order[0]],
        best_of_first=best / seconds[order[:TOP]].min(),
        best_of_unlike=best / seconds[unlike].min(),
        rank=spearman(predicted, seconds),
        rank_apart=spearman(predicted[kept], seconds[kept]) if len(kept) >= FEWEST else math.nan,
        error=float(np.abs(predicted / seconds - 1).mean()),
    )


def noise(timed: Sequence[Timed]) -> float:
    """The standard deviation of the logarithm of a measurement, of candidates measured often."""
    variances = [
        float(np.var(np.log(each.seconds), ddof=1)) for each in timed if len(each.seconds) > 1
    ]
    return math.sqrt(statistics.median(variances)) if variances else 0.0


def apart(seconds: np.ndarray, difference: float) -> list[int]:
    """The best candidate, and from there each that is slower than the last of them by a factor of
    more than exp(difference)."""
    kept: list[int] = []
    for at in np.argsort(seconds, kind="stable"):
        if not kept or seconds[at] > seconds[kept[-1]] * math.exp(difference):
            kept.append(int(at))
    return kept


def measured_again(tasks: Tasks) -> Scores:
    """Each measurement as a prediction of the others: what noise leaves possible."""
    found = []
    for timed in tasks.values():
        often = [each for each in timed if len(each.seconds) > 1]
        for at in range(min((len(each.seconds) for each in often), default=0)):
            one = np.array([each.seconds[at] for each in often])
            others = [(*each.seconds[:at], *each.seconds[at + 1 :]) for each in often]
            found.append(score(often, one, np.array([statistics.median(o) for o in others])))
    return found


def random_choice(timed: Sequence[Timed]) -> Score:
    """Expected values; the best of the first five over many draws."""
    seconds, kernels = data.seconds(timed), [each.features for each in timed]
    best, rng = seconds.min(), np.random.default_rng(0)
    few = min(TOP, len(seconds))
    draws = [best / rng.choice(seconds, few, replace=False).min() for _ in range(2000)]
    unlike = [shortlist(kernels, rng.random(len(kernels)).tolist(), TOP) for _ in range(200)]
    found = [best / seconds[places].min() for places in unlike]
    return Score(float((best / seconds).mean()), float(np.mean(draws)), float(np.mean(found)))


def default_choice(timed: Sequence[Timed]) -> Score:
    """The default schedule of the first strategy that codes of these formats can have."""
    order = ("int8", "dequantize", "float", "trellis", "trellis-float")
    seconds = data.seconds(timed)
    names = {each.features.strategy for each in timed}
    strategy = next(name for name in order if name in names)
    own = [e for e in timed if e.default and data.own(e) and e.features.strategy == strategy]
    share = float(seconds.min() / own[0].sample.seconds)
    return Score(share, share, share)


def columns(found: Scores) -> tuple[str, ...]:
    """Means over tasks, as text; empty where there is nothing to say."""
    texts = []
    for name, form in COLUMNS.items():
        known = [v for v in (getattr(each, name) for each in found) if not math.isnan(v)]
        texts.append(format(statistics.mean(known), form) if known else "")
    return tuple(texts)


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
