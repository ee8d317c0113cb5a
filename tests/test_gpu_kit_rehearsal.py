"""The kit's whole run, rehearsed without a GPU: `run.py` and its workers on the PTX machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench" / "gpu"))
import build
from gpubuild.plan import AttentionPlan, Plan
from gpukit import kit as kits
from gpukit.kit import ProbeSizes
from gpukit.parts import PARTS
from gpukit.stand_in import VARIABLE

SCRIPT = Path(__file__).parent / "bench" / "gpu" / "run.py"
DRIVER = Path(__file__).parent / "kit_driver.py"
SMALL = Plan(
    shapes=((128, 40),),
    rows=(1, 20),
    formats=("W4A8", "W2A2"),
    others=("W3A8",),
    other_shape=(128, 40),
    operators=("copies",),
    following=0,
    max_kernels=6,
    sampled=0,
    check_rows=36,
    wide_n=37,
    turns=1,
    copy_bytes=1 << 15,
    probe=ProbeSizes(1 << 14, turns=5, spins=3, clock_turns=7, wait_turns=3),
    wgmma=False,
    assembled=False,
    attention=AttentionPlan(heads=0),
    minilm=False,
    decoder_layers=0,
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> kits.Kit:
    folder = tmp_path_factory.mktemp("kit")
    build.build(SMALL, "sm_90a", folder, lambda text: None)
    return kits.read(folder)


def rehearse(
    kit: kits.Kit, results: Path, *options: str, **faults: str
) -> tuple[int, dict[str, Any], str]:
    """The exit status, results.json, and what was printed."""
    environment = os.environ | faults | {VARIABLE: str(DRIVER), "MARK": str(results / "died")}
    command = [sys.executable, SCRIPT, "--kit", kit.folder, "--output", results]
    command += ["--start-seconds", "30", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert not {"Traceback", "error:"} & set(done.stderr.split()), done.stderr
    return done.returncode, json.loads((results / "results.json").read_text()), done.stdout


def names_of_errors(records: list[dict[str, Any]]) -> dict[str, str]:
    return {
        r["name"]: r.get("error") or r["wrong"] for r in records if r.get("error") or r.get("wrong")
    }


def test_a_run_in_which_nothing_fails(kit: kits.Kit, tmp_path: Path) -> None:
    status, data, text = rehearse(kit, tmp_path, "--only", "check,rates")
    assert (status, data["failures"], data["unreached"]) == (0, [], [])
    assert data["machine"]["device"] == "PTX machine" and "None in what ran." in text
    assert len(data["records"]["check"]) == len(kit.cases)


def test_everything_that_can_go_wrong_at_once(kit: kits.Kit, tmp_path: Path) -> None:
    """A worker that dies before its first record, one that hangs, a context that is lost, a kernel
    that is wrong, no graphs: each is named, the rest is unharmed."""
    kernels = [case.launches.kernel for case in kit.cases]
    hangs, lost, lies = kernels[2], kernels[3], kernels[4]
    assert len(set(kernels)) == len(kernels) >= 6
    faults = {
        "FAULTS": "dies,hangs,lost,lies,no graphs",
        "HANGS": hangs,
        "LOST": lost,
        "LIES": lies,
    }
    status, data, text = rehearse(kit, tmp_path, "--minutes", "9", **faults)
    assert status == 1
    assert set(data["records"]) == set(PARTS) - {"machine"} and data["unreached"] == []
    checks = data["records"]["check"]
    assert [r["item"] for r in checks] == list(range(len(kit.cases)))
    found = {number: (r.get("error") or r.get("wrong")) for number, r in enumerate(checks)}
    assert "ended with status 9" in found[0]
    assert "no answer in 8 seconds" in found[2]
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found[3]
    assert "values differ" in found[4]
    assert not any(why for number, why in found.items() if number not in (0, 2, 3, 4))
    for kernel in hangs, lost, lies:
        assert kernel in text
    (copies,) = data["records"]["operators"]
    refused = "a graph: cuGraphInstantiateWithFlags: CUDA_ERROR_NOT_SUPPORTED"
    assert copies["wrong"].endswith(refused) and copies["deviation"] == 0
    lines = data["records"]["table"]
    for r in lines:
        assert bool(r.get("error")) == bool(
            {hangs, lost} & set(kit.table[r["item"]].launches.kernels)
        )
    assert (tmp_path / "results.md").exists() and len(list(tmp_path.iterdir())) <= 17


def test_a_gpu_that_is_lost_from_the_beginning(kit: kits.Kit, tmp_path: Path) -> None:
    environment = os.environ | {VARIABLE: str(tmp_path / "missing.py")}
    command = [sys.executable, SCRIPT, "--kit", kit.folder, "--output", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "the GPU cannot be used" in done.stderr
