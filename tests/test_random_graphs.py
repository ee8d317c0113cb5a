"""Random graphs over the operators (`random_graphs/`) agree with onnx's reference evaluator.

By hand, for long: `python tests/test_random_graphs.py FIRST LAST` takes seeds and goes on after a
disagreement.
"""

from __future__ import annotations

import random
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
from conformance.backend import prepare_modules
from random_graphs import grow
from random_graphs.check import check

CHAINS = 12  # of a graph: a compile costs more than its nodes
EXAMPLES = 10


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    prepare_modules()


# Shrinking is not worth its compiles: the message names the nodes to blame.
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(seed=st.integers(0, 2**32))
def test_agrees(seed: int) -> None:
    wrong = check(grow(random.Random(seed), CHAINS))
    assert wrong is None, f"seed {seed}: {wrong}"


def main(first: int, last: int) -> None:
    prepare_modules()
    for seed in range(first, last):
        wrong = check(grow(random.Random(seed), CHAINS))
        print(f"seed {seed}: {wrong or 'agrees'}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
