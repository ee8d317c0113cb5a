"""Compile the zoo's models, run them beside onnxruntime, and say what does not work and why.

    python tests/zoo/run.py [GLOB ...] [--quant RECIPE] [--json FILE] [--first-size] [--missing]

For each model: compile (in processes of its own, as always), run at two sizes of every dynamic
axis from one library in a child process, compare. A line a model, then the causes of failure. The
JSON lines of an earlier run with the same `--json` are kept; `--missing` skips their models.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from abqc.compiler.driver import compile_file
from abqc.errors import AbqcError, NothingToQuantizeError
from abqc.runtime.model import load
from zoo.check import COSINE
from zoo.entry import Entry, chosen
from zoo.make import path_of
from zoo.noise import LEVEL
from zoo.table import ENTRIES

CHECK = Path(__file__).with_name("check.py")
STEP = 1e-2  # of the range: what rounding to 8 bits may move an output by
LOSS = 0.05  # how much further than the recipe's own rounding a quantized model may be, in cosine


@dataclass
class Outcome:
    """`state`: ok, or what failed first: compile, run, disagrees. `why`: its cause.

    `empty`: refused because the recipe has nothing to quantize, which is right. An `ok` with a
    `reason` is one that needed more than the tolerance: noise, recipe or zero (report.py).
    """

    name: str
    quant: str
    state: str = "ok"
    why: str = ""
    seconds: float = 0.0
    bytes: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)
    floats: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def error(self) -> float:
        return max((run["error"] for run in self.runs), default=0.0)

    @property
    def cosine(self) -> float:
        return min((run["cosine"] for run in self.runs), default=1.0)

    def line(self) -> str:
        return (
            f"{self.name:34} {self.state:9} {self.seconds:6.1f} s {self.bytes / 1e6:8.2f} MB"
            f"  error {self.error:.1e} cosine {self.cosine:.5f}  {self.why[:150]}"
        )


def try_model(entry: Entry, path: Path, quant: str, runs: int) -> Outcome:
    """Compile and check one model; whatever happens is in the outcome."""
    outcome = Outcome(entry.name, quant)
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "model.so"
        started = time.perf_counter()
        try:
            with deadline(entry.seconds):
                compile_file(path, quant=quant, output=library)
        except TimeoutError:
            return failed(outcome, "compile", f"longer than {entry.seconds:.0f} s")
        except NothingToQuantizeError as error:
            return failed(outcome, "empty", f"RecipeError: {error}")
        except AbqcError as error:
            return failed(outcome, "compile", f"{type(error).__name__}: {error}")
        except Exception as error:
            return failed(outcome, "compile", f"not an AbqcError: {type(error).__name__}: {error}")
        finally:
            outcome.seconds = time.perf_counter() - started
        outcome.bytes = library.stat().st_size
        outcome.floats = unintended_floats(library)
        return judged(outcome, entry, checked(entry, library, quant, runs))


def unintended_floats(library: Path) -> list[str]:
    """The nodes with weights that stayed float for another reason than the recipe."""
    floats = load(library).manifest["float"]
    return [f"{f['node']} ({f['kind']}): {f['why']}" for f in floats if not f["by_recipe"]]


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """TimeoutError in this thread after `seconds`."""

    def expire(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def checked(entry: Entry, library: Path, quant: str, runs: int) -> dict[str, Any]:
    """What check.py says: its object, or {"problem": ...} where it died or took too long."""
    command = [sys.executable, str(CHECK), entry.name, str(library), quant, str(runs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=entry.seconds)
    except subprocess.TimeoutExpired:
        return {"problem": f"runs longer than {entry.seconds:.0f} s"}
    if done.returncode < 0:
        return {"problem": f"died of {signal.Signals(-done.returncode).name}"}
    if done.returncode > 0:
        return {"problem": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def judged(outcome: Outcome, entry: Entry, result: dict[str, Any]) -> Outcome:
    if "problem" in result:
        return failed(outcome, "run", result["problem"])
    outcome.runs = result["runs"]
    for run in outcome.runs:
        if run["problem"]:
            return failed(outcome, "run" if run["died"] else "disagrees", run["problem"])
    for run in sorted(outcome.runs, key=lambda run: -run["cosine"]):  # the worst gives the cause
        judge = judged_float if outcome.quant == "none" else judged_quantized
        outcome.state, reason, why = judge(entry, run)
        if why:
            outcome.reason, outcome.why = reason, why
        if outcome.state != "ok":
            break
    return outcome


def judged_float(entry: Entry, run: dict[str, Any]) -> tuple[str, str, str]:
    """The state, the reason and the cause of a run of the model as it is."""
    if run["flips"] > entry.flips:
        return "disagrees", "", f"{run['flips']:.1%} of integers differ"
    if run["error"] <= entry.tolerance:
        return "ok", "", ""
    if run["error"] <= run["noise"]:
        return "ok", "noise", moved_by_noise(run)
    why = f"error {run['error']:.1e} > {entry.tolerance:.0e} at {run['sizes']}"
    return "disagrees", "", f"{why}; onnxruntime's spread {run['spread']:.1e}"


def moved_by_noise(run: dict[str, Any]) -> str:
    return f"noise of {LEVEL:.0e} on the weights moves onnxruntime by {run['noise']:.1e}"


def judged_quantized(entry: Entry, run: dict[str, Any]) -> tuple[str, str, str]:
    """The state, the reason and the cause of a run under a recipe."""
    if run["cosine"] >= COSINE:
        return "ok", "", ""
    if run["error"] <= STEP:
        return (
            "ok",
            "zero",
            f"the answer is next to 0: error {run['error']:.1e} of {entry.span or 'its range'}",
        )
    if run["error"] <= run["noise"]:
        return "ok", "noise", moved_by_noise(run)
    if run["recipe"] is None:
        return "disagrees", "", f"cosine {run['cosine']:.3f}"
    why = f"the recipe's rounding, by onnxruntime, has cosine {run['recipe']:.3f}"
    why += f" (the library {run['cosine']:.3f}, to each other {run['reference']:.3f})"
    if run["cosine"] < run["recipe"] - LOSS:
        return "disagrees", "", why
    return "ok", "recipe", why


def failed(outcome: Outcome, state: str, why: str) -> Outcome:
    outcome.state, outcome.why = state, why
    return outcome


def cause(outcome: Outcome) -> str:
    """The reason without names and numbers, so that equal causes are found together."""
    text = re.sub(r"\(node '.*?'\)", "", outcome.why)
    text = re.sub(r"'[^']*'", "'…'", text)
    return f"{outcome.state}: {re.sub(r'[0-9][0-9.e+-]*', 'N', text)[:160]}"


def summary(outcomes: list[Outcome]) -> str:
    states: dict[str, int] = defaultdict(int)
    causes: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        states[outcome.state] += 1
        if outcome.state != "ok":
            causes[cause(outcome)].append(outcome.name)
    lines = [", ".join(f"{n} {state}" for state, n in sorted(states.items()))]
    for text, names in sorted(causes.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(names):4}  {text}\n      {' '.join(names)}")
    floats = [o for o in outcomes if o.floats and o.quant != "none"]
    for outcome in floats:
        lines.append(f"float in {outcome.name}: {'; '.join(outcome.floats[:6])}")
    return "\n".join(lines)


def earlier(path: Path | None) -> dict[str, Outcome]:
    """The outcomes of a file of JSON lines, the last one of each model."""
    if path is None or not path.exists():
        return {}
    return {outcome.name: outcome for outcome in outcomes_in(path)}


def outcomes_in(path: Path) -> Iterator[Outcome]:
    """The outcomes of a file of JSON lines, without those that lack a field."""
    names = {each.name for each in fields(Outcome)}
    for line in path.read_text().splitlines():
        data = json.loads(line)
        if names <= data.keys():
            yield Outcome(**data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="GLOB")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--json", type=Path, help="add a JSON line for every model")
    parser.add_argument("--first-size", action="store_true", help="one run a model, not two")
    parser.add_argument("--missing", action="store_true", help="only models not in --json yet")
    arguments = parser.parse_args()
    outcomes = earlier(arguments.json)
    for entry in chosen(ENTRIES, arguments.patterns):
        if arguments.missing and entry.name in outcomes:
            continue
        path = path_of(entry)
        if path is None:
            print(f"{entry.name:34} not in the cache: make it with tests/zoo/make.py")
            continue
        outcome = try_model(entry, path, arguments.quant, 1 if arguments.first_size else 2)
        outcomes[entry.name] = outcome
        print(outcome.line(), flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    print(summary(list(outcomes.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
