"""onnx's own backend suite (`conformance/`): a fixed sample here, all of it with the slow tests."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import pytest
from conformance import results
from conformance.cases import Case, all_cases
from conformance.exclusions import EXCLUSIONS, exclusion
from conformance.run import Task, run
from conformance.variants import VARIANTS

SAMPLE = 40  # one test in so many
NODE_TESTS_PASSED = 1780  # at least
SHARE_OF_VARIANTS = 0.97  # of the node tests that pass as they are
# A refusal names its reason; all else that is not passed is a defect.
REFUSED = ("passed", "excluded", "not-applicable", "refused")


def test_every_exclusion_is_about_a_test() -> None:
    names = [case.name for case in all_cases()]
    idle = [p for p in EXCLUSIONS if not any(fnmatchcase(name, p) for name in names)]
    assert not idle


def test_sample() -> None:
    """In one form each: the forms take turns."""
    chosen = [case for case in all_cases() if _lot(case) % SAMPLE == 0 and case.group != "real"]
    tasks = [
        Task(case, VARIANTS[_lot(case) // SAMPLE % len(VARIANTS)], "abqc")
        for case in chosen
        if exclusion(case.name) is None
    ]
    rows = list(run(tasks))
    assert not _lines(row for row in rows if row["status"] in results.FAILED)


@pytest.mark.slow
def test_everything() -> None:
    tasks = [Task(case, variant, "abqc") for variant in VARIANTS for case in all_cases()]
    rows = list(run(tasks))
    assert not _lines(row for row in rows if row["status"] not in REFUSED)
    nodes = {(row["variant"], row["name"]): row["status"] for row in rows if row["group"] == "node"}
    plain = [n for (variant, n), s in nodes.items() if (variant, s) == ("plain", "passed")]
    assert len(plain) >= NODE_TESTS_PASSED
    for variant in VARIANTS[1:]:
        tried = [nodes[variant, n] for n in plain if nodes[variant, n] != "not-applicable"]
        assert tried.count("passed") >= SHARE_OF_VARIANTS * len(tried), variant
    rest = [row for row in rows if row["variant"] == "plain" and row["group"] != "node"]
    assert not _lines(row for row in rest if row["status"] in results.FAILED)


def _lot(case: Case) -> int:
    return zlib.crc32(case.name.encode())


def _lines(rows: Iterable[results.Row]) -> str:
    return "\n".join(map(results.line, rows))
