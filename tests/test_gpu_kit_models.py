"""Models of the kit for a real GPU: built small, run on the PTX machine's driver."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from abqc.runtime.ptx.driver import PtxDriver
from fake_torch import FakeTorch

sys.path.insert(0, str(Path(__file__).parent / "bench" / "gpu"))
import build
from gpubuild.plan import OPERATORS, AttentionPlan, Plan
from gpukit import kit as kits
from gpukit import launch_times, model_times, models, operators
from gpukit.device import KitDevice
from gpukit.kit import ProbeSizes
from kit_driver import KitDriver

ONE_LAYER = Plan(
    shapes=((256, 40),),
    rows=(1,),
    formats=(),
    turns=1,
    probe=ProbeSizes(1 << 14, turns=5, spins=3, clock_turns=7, wait_turns=3),
    wgmma=False,
    assembled=False,
    others=(),
    operators=(),
    attention=AttentionPlan(heads=0),
    minilm=False,
    decoder_layers=1,
    decoder_recipes=("w4a8",),
    prompts=(5,),
    decoding=((5, 3),),
)


@pytest.mark.slow
def test_models_run_whole(tmp_path: Path):
    build.build(ONE_LAYER, "sm_90a", tmp_path, lambda text: None)
    kit = kits.read(tmp_path)
    assert [feed.name for feed in kit.feeds] == ["decode 3 after 5", "step after 5", "prompt 5"]
    for number in range(len(models.names(kit))):
        device = PtxDriver((9, 0), separate_buffers=False)
        record = models.measure(kit, number, device=device, runs=1)
        assert record["wrong"] == "" and record["device_seconds"] is None
        assert record["device_missing"] and bool(record["graph_runs"]) == record["graphs"]
        early = record["shape"] and record["shape"]["dependent"] == record["shape"]["edges"] > 0
        assert bool(early) == (record["mode"] == "")
    check_tensors_of_pytorch(kit)
    check_launches(kit)


@pytest.mark.slow
def test_operators_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = replace(ONE_LAYER, operators=OPERATORS, decoder_layers=0)
    build.build(plan, "sm_90a", tmp_path, lambda text: None)
    kit = kits.read(tmp_path)
    assert {feed.model for feed in kit.operators} == {f"operators-{name}" for name in OPERATORS}
    monkeypatch.setattr(operators, "default_device", lambda: KitDriver())
    for number, name in enumerate(operators.names(kit)):
        assert operators.measure(kit, number)["wrong"] == "", name


def check_launches(kit: kits.Kit) -> None:
    """Every launch of a step is listened to, in order."""
    with KitDevice(kit, KitDriver().resolve) as device:
        number = launch_times.names(kit).index("decoder-w4a8 step after 5")
        record = launch_times.measure(device, number)
    names = [name for name, _, _ in record["launches"]]
    assert len(names) > 10 and "?" not in names and "probe_clock" not in names
    assert any(name.startswith("attention") for name in names)
    assert sum(count for count, _ in record["kernels"].values()) == len(names)


def check_tensors_of_pytorch(kit: kits.Kit) -> None:
    """Caches that grow in place, and one run again and again: the outputs are those expected."""
    for feed in kit.feeds:
        folder = kit.folder / "models" / feed.model
        inputs, expected = models.arrays_of(kit, feed)
        driver = PtxDriver((9, 0))
        torch = FakeTorch(driver.machine)
        with pytest.MonkeyPatch.context() as patch, models.opened(folder, driver) as model:
            patch.setattr("gpukit.model_times.pytorch", lambda torch=torch: torch)
            _, on_device = model_times.timers(model, feed, inputs, 1)
            *seconds, outputs = on_device()
        assert min(seconds) > 0 and set(outputs) == set(expected)
        assert models.errors(feed, expected, outputs) <= feed.tolerance
