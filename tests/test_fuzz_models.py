"""A fuzzer over models: whatever is changed, it compiles and runs, or is refused in one line.

`python tests/test_fuzz_models.py FIRST LAST` looks for more, by seeds.
"""

from __future__ import annotations

import functools
import random
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import onnx
import pytest
from conformance.backend import prepare_modules
from conformance.cases import all_cases
from hostile.attempt import Result, attempt
from hostile.mutate import mutated
from small_graphs import all_graphs

EXAMPLES = 30
MANY = 1500  # in `make test-all`
LARGEST = 20_000  # bytes of a model
SECONDS = 20  # for a model that is small
ALLOWED = ("compiled", "ran", "refused", "run-error")


@functools.cache
def models() -> list[onnx.ModelProto]:
    """Those of onnx's node tests, and small graphs of real ones."""
    nodes = [case.load()[0] for case in all_cases() if case.group == "node" and not case.expanded]
    graphs = [graph.model for graph in all_graphs().values()]
    return [model for model in nodes + graphs * 5 if model.ByteSize() <= LARGEST]


def write(seed: int, folder: Path) -> Path:
    choose = random.Random(seed)
    path = folder / "model.onnx"
    path.write_bytes(mutated(choose.choice(models()), choose, choose.randint(1, 3)))
    return path


def wrong(seed: int) -> str | None:
    """What a user would be angry about; None if nothing."""
    result = attempt(functools.partial(write, seed), timeout=SECONDS)
    return _complaint(result)


def _complaint(result: Result) -> str | None:
    if result["status"] not in ALLOWED:
        return f"{result['status']}: {result.get('message')}"
    if "\n" in result.get("message", ""):
        return f"an error of several lines: {result['message']!r}"
    if result["left"] or result.get("written"):
        return f"left behind: {result['left']}"
    return None


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    prepare_modules()


_SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
_SEEDS = st.integers(0, 2**32)


@_SETTINGS
@hypothesis.given(seed=_SEEDS)
def test_mutations(seed: int) -> None:
    complaint = wrong(seed)
    assert complaint is None, f"seed {seed}: {complaint}"


@pytest.mark.slow
@hypothesis.settings(_SETTINGS, max_examples=MANY)
@hypothesis.given(seed=_SEEDS)
def test_many_mutations(seed: int) -> None:
    complaint = wrong(seed)
    assert complaint is None, f"seed {seed}: {complaint}"


def main(first: int, last: int) -> None:
    prepare_modules()
    for seed in range(first, last):
        print(".", end="", flush=True)
        complaint = wrong(seed)
        if complaint is not None:
            print(f"\nseed {seed}: {complaint}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
