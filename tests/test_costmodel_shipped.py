"""Which of the models that come with the package a CPU gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from abqc.codegen import isa as isas
from abqc.costmodel import cpu_identity, load, shipped
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.cpu_identity import CpuIdentity
from abqc.costmodel.hardware import gpu_named
from abqc.costmodel.interface import MatmulFeatures
from abqc.costmodel.shipped import CPUS, GPUS, Shipped, ShippedGpu, shipped_for, shipped_for_gpu

AVX512 = frozenset(isas.AVX512.cpu_flags)
AVX2 = frozenset(isas.AVX2.cpu_flags)
ZEN4 = CpuIdentity("AuthenticAMD", 25, 17, AVX512)
INFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu avx2 fma

processor\t: 1
vendor_id\t: another
"""


def test_the_first_processor_tells_what_a_cpu_is():
    expected = CpuIdentity("AuthenticAMD", 25, 17, frozenset({"fpu", "avx2", "fma"}))
    assert CpuIdentity.parse(INFO) == expected
    assert expected.text == "AuthenticAMD family 25 model 17"


@pytest.mark.parametrize("text", ["", "vendor_id : x", INFO.replace("25", "many")])
def test_what_does_not_tell_is_unknown(tmp_path: Path, monkeypatch, text):
    assert CpuIdentity.parse(text) is None
    monkeypatch.setattr(cpu_identity, "CPU_INFO", tmp_path / "missing")
    assert CpuIdentity.of_this_machine() is None


@pytest.mark.parametrize(("flags", "name"), [(AVX512, "avx512"), (AVX2, "avx2"), ((), "plain")])
def test_flags_tell_the_best_instruction_set(flags, name):
    assert replace(ZEN4, flags=frozenset(flags)).best_isa == name


ONE = Shipped("One", "GenuineIntel", 6, (range(0x8F, 0x90),), ("avx512", "avx2"), "one.json")
TWO = Shipped("Two", "AuthenticAMD", 25, (range(0x10, 0x20),), ("avx512",), "two.json")


def test_a_cpu_gets_its_own_model_or_the_nearest():
    rows = (ONE, TWO)
    intel = CpuIdentity("GenuineIntel", 6, 0x8F, AVX512)
    assert shipped_for(intel, rows) is ONE
    assert shipped_for(ZEN4, rows) is TWO
    assert shipped_for(replace(ZEN4, family=26), rows) is TWO  # of its vendor
    assert shipped_for(replace(intel, vendor="another"), rows) is ONE
    assert shipped_for(replace(ZEN4, family=23, flags=AVX2), rows) is ONE  # has AVX2
    assert shipped_for(replace(ZEN4, family=16, flags=frozenset()), rows) is None
    assert shipped_for(None, rows) is None


@pytest.mark.parametrize("row", CPUS, ids=lambda row: row.name)
def test_every_shipped_model_can_be_read_and_knows_its_instruction_sets(row: Shipped):
    model = AnalyticModel.load(row.path)
    assert model.fitted_isas == set(row.isas)
    f = MatmulFeatures("int8", 16, 1024, 1024, 4, 8, weight_bytes=1 << 19)
    for isa in row.isas:
        assert 1e-6 < model.predict(replace(f, isa=isa)) < 1e-2
    assert row.path.stat().st_size < 600_000


def test_the_status_says_for_what_a_model_was_trained(monkeypatch):
    monkeypatch.setattr(CpuIdentity, "of_this_machine", lambda: ZEN4)
    assert load.shipped_model("cpu").status.endswith("shipped for Zen 4")
    monkeypatch.setattr(CpuIdentity, "of_this_machine", lambda: replace(ZEN4, family=26))
    nearest = "shipped for Zen 4, the nearest to AuthenticAMD family 26 model 17"
    assert load.shipped_model("cpu").status.endswith(nearest)
    monkeypatch.setattr(CpuIdentity, "of_this_machine", lambda: None)
    assert load.shipped_model("cpu").status == "analytic only"


def test_an_unreadable_shipped_model_does_not_keep_from_compiling(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(CpuIdentity, "of_this_machine", lambda: ZEN4)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    model = load.shipped_model("cpu")
    assert model.status == "analytic only" and "not used" in model.warning


def test_a_gpu_gets_its_own_model_or_that_of_its_architecture():
    rows = tuple(ShippedGpu(name, "sm_89", f"{name}.json") for name in ("RTX 4090", "L4"))
    assert shipped_for_gpu(gpu_named("L4"), rows) is rows[1]
    assert shipped_for_gpu(gpu_named("H200"), rows) is None


@pytest.mark.parametrize("row", GPUS, ids=lambda row: row.name)
def test_every_model_of_a_gpu_can_be_read_and_is_used(row: ShippedGpu):
    model = load.shipped_model(row.arch, row.name)
    assert model.residual is not None and model.status.endswith(f"shipped for {row.name}")
    assert row.path.stat().st_size < 300_000


def test_another_gpu_of_the_architecture_keeps_its_own_roofline():
    model = load.shipped_model("sm_90a", "NVIDIA H100 80GB HBM3")
    assert model.machine == "H100" and model.status.endswith("H200, the nearest to H100")
    assert load.shipped_model("sm_80").status == "analytic only"


def test_an_unreadable_model_of_a_gpu_does_not_keep_from_compiling(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    model = load.shipped_model("sm_90a")
    assert model.status == "analytic only" and "not used" in model.warning
