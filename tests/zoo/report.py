"""Writes docs/zoo.md from the JSON lines of runs: `report.py RESULTS ... --output FILE`.

The files may be of several recipes; the last line of a model and a recipe counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zoo.entry import Entry
from zoo.run import Outcome, outcomes_in
from zoo.table import ENTRIES

QUANTS = ("none", "w8a8", "w4a8")
Key = tuple[str, str]

_HEAD = """# The zoo

Made by `make zoo`: do not edit. {count} models, published ones and such as their exporters and
onnxruntime {onnxruntime}'s tools write, are compiled, run at two sizes of each of their dynamic
axes from one library, and compared with onnxruntime's answers to the published model.

*Error* is the largest difference of `--quant none` over the range of the output (over the model's
span, such as 1 for probabilities, where that is larger). *Cosine* is the worst output's mean cosine
to the float model. Seconds and megabytes are those of one compile in float and of its library; the
machine may have done other things at the time, and kernels that another model had come from the
cache. What failed was run again, and results of earlier runs are kept, so that lines may be of
different states of the code.

A model agrees where its error is within its tolerance (1e-4; 5e-3 in 16-bit floats; 1e-2, a step
of 8 bits, where it rounds at run time; the table in tests/zoo says which are wider, and why), and
under a recipe where its cosine is at least 0.9. Others are right for one of these reasons:

- *noise*: with noise of 3e-7 on its weights onnxruntime's own answer moves by as much, because a
  value crosses to the next code (docs/numerics.md);
- *recipe*: the recipe's rounding, written into the model in standard ONNX and computed by
  onnxruntime (tests/zoo/quantized.py), is as far from the float model, to 0.05;
- *zero*: the answer is next to 0, and the error at most 1e-2 of its span;
- *empty*: the recipe has nothing to quantize, which the compiler says as an error.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    outcomes = read(options.results)
    partial = options.output.with_suffix(".md.new")
    partial.write_text(page(ENTRIES, outcomes))
    partial.replace(options.output)
    return 0


def read(paths: Iterable[Path]) -> dict[Key, Outcome]:
    """The last outcome of each model and recipe."""
    outcomes: dict[Key, Outcome] = {}
    for path in paths:
        for outcome in outcomes_in(path):
            outcomes[outcome.name, outcome.quant] = outcome
    return outcomes


def page(entries: list[Entry], outcomes: dict[Key, Outcome]) -> str:
    known = [entry for entry in entries if any((entry.name, q) in outcomes for q in QUANTS)]
    parts = [
        _HEAD.format(count=len(known), onnxruntime=version("onnxruntime")),
        _counts(known, outcomes),
        "## Models\n\n| model | what | error | w8a8 | w4a8 | s | MB |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        + "".join(_row(entry, outcomes) for entry in known),
    ]
    explained = [line for entry in known for line in _causes(entry, outcomes)]
    if explained:
        parts.append("## Reasons\n\n" + "".join(explained))
    return "\n".join(parts)


def _counts(entries: list[Entry], outcomes: dict[Key, Outcome]) -> str:
    rows = ["| recipe | models | agree | of these for a reason | fail |", "| --- |" + " --- |" * 4]
    for quant in QUANTS:
        found = [outcomes[e.name, quant] for e in entries if (e.name, quant) in outcomes]
        reasons = [reason(outcome) for outcome in found]
        agree, fail = reasons.count(""), reasons.count("fails")
        explained = len(found) - agree - fail
        rows.append(f"| {quant} | {len(found)} | {agree + explained} | {explained} | {fail} |")
    return "\n".join(rows) + "\n"


def reason(outcome: Outcome) -> str:
    """Why an outcome is right that is not plainly so; "" for what is, "fails" for what is not."""
    if outcome.state == "empty":
        return "empty"
    return outcome.reason if outcome.state == "ok" else "fails"


def _row(entry: Entry, outcomes: dict[Key, Outcome]) -> str:
    plain = outcomes.get((entry.name, "none"))
    size = "" if plain is None else f"{plain.seconds:.1f} | {plain.bytes / 1e6:.2f}"
    cells = (_figure(outcomes.get((entry.name, quant))) for quant in QUANTS)
    return f"| {entry.name} | {entry.what} | {' | '.join(cells)} | {size or ' | '} |\n"


def _figure(outcome: Outcome | None) -> str:
    """The error or the cosine, and the reason where there is one."""
    if outcome is None:
        return ""
    why = reason(outcome)
    if not outcome.runs:
        return why
    number = f"{outcome.error:.1e}" if outcome.quant == "none" else f"{outcome.cosine:.4f}"
    return f"{number} {why}".strip()


def _causes(entry: Entry, outcomes: dict[Key, Outcome]) -> Iterable[str]:
    for quant in QUANTS:
        outcome = outcomes.get((entry.name, quant))
        if outcome is not None and reason(outcome) not in ("", "empty"):
            yield f"- {entry.name}, {quant}: {outcome.why}\n"


if __name__ == "__main__":
    sys.exit(main())
