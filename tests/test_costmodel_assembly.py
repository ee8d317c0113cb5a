"""What the assembler makes of kernels, predicted: files, bounds, and how choices use it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_90A
from abqc.codegen.gpu.builder import REGISTERS
from abqc.codegen.gpu.matmul.strategy import KnownCode, Scheduled
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel import assembly
from abqc.costmodel.assembly import Assembly, AssemblyModel, Family, KernelCode, shipped_assembly
from abqc.costmodel.dense_network import DenseNetwork, Layer
from abqc.costmodel.number_inputs import NumberInputs
from abqc.costmodel.register_counts import BINS, RegisterCounts
from abqc.costmodel.trees import Growth, Trees, fit
from abqc.dialects.context import make_context
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import ir
from abqc.errors import ArtifactError

W4A8 = MatmulSpec(4096, 4096, parse_scheme("w4"), parse_scheme("a8"))

INPUTS = NumberInputs.of(np.random.default_rng(1).normal(size=(9, 4)), most=2, named=-3)


def step(feature: int, threshold: float, low: float, high: float) -> Trees:
    """`low` up to a threshold of one feature, `high` beyond."""
    return Trees(
        0.0, np.array([[feature]]), np.array([[threshold]]), np.array([[low, high]], np.float64)
    )


def counts_by(trees: Trees, *networks: DenseNetwork) -> RegisterCounts:
    return RegisterCounts(trees, networks, INPUTS)


def network_of(scores: np.ndarray, width: int) -> DenseNetwork:
    """That says `scores` of BINS, whatever it sees of `width` inputs."""
    last = Layer.of(np.zeros((width, len(BINS)), np.float32), scores.astype(np.float32))
    return DenseNetwork((last,))


def model_that_spills_below(bound: float) -> AssemblyModel:
    """Of one number, `size`: 100 registers, and spills where a thread has fewer than `bound`."""
    at = 3  # size, capability, bound, and here the most registers
    family = Family(
        ("size",),
        counts_by(step(0, 0, 100, 100)),
        step(at, bound - 1, 1, -1),
        step(0, 10, 0, np.log(2)),
    )
    return AssemblyModel({"tile": family}, ("sm_90a",))


def code(size: float, bound: int = 0, threads: int = 128) -> KernelCode:
    return KernelCode("tile", {"size": size, "other": 1.0}, threads, bound)


def test_bounds_are_raised_until_nothing_is_spilled() -> None:
    model = model_that_spills_below(120)
    few, enough = model.predict([code(1, bound=96), code(20, bound=128)], "sm_90a")
    assert few == Assembly(100, 120, False, 1.0)
    assert enough is not None and enough.bound == 0 and enough.slots == pytest.approx(2)


def test_a_kernel_that_spills_with_all_registers_says_so() -> None:
    (expected,) = model_that_spills_below(300).predict([code(1)], "sm_90a")
    assert expected is not None and expected.spills
    assert expected.bound <= assembly.most_registers("sm_90a", 128) == 255
    assert assembly.most_registers("sm_90a", 512) == 128


def test_of_what_was_not_learned_nothing_is_said() -> None:
    model = model_that_spills_below(0)
    assert model.predict([code(1)], "sm_80") == [None]
    assert model.predict([replace(code(1), family="wires"), code(1)], "sm_90a")[0] is None


def test_files_round_trip_and_others_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 4))
    trees = fit(rows, 100 + 20 * rows[:, 0], Growth(trees=20, depth=3))
    first = rng.normal(size=(INPUTS.count, 7)).astype(np.float32)
    hidden = Layer.of(first, np.ones(7, np.float32))
    last = Layer.of(rng.normal(size=(7, 59)).astype(np.float32), np.ones(59, np.float32))
    network = DenseNetwork((hidden, last))
    family = Family(("a",), counts_by(trees, network, network), trees, step(0, 0, 0, 1))
    model = AssemblyModel({"rows": family}, ("sm_90a",))
    model.save(tmp_path / "model.npz", {"kernels": 300})
    again = AssemblyModel.load(tmp_path / "model.npz")
    assert again.targets == model.targets and again.families["rows"].names == ("a",)
    counts = again.families["rows"].registers
    np.testing.assert_allclose(counts.trees.predict(rows), trees.predict(rows), atol=0.5)
    seen = counts.inputs(rows)
    np.testing.assert_array_equal(seen, INPUTS(rows))
    for each in counts.networks:
        np.testing.assert_array_equal(each.predict(seen), network.predict(seen))
    same = counts.predict(rows) == family.registers.predict(rows)
    assert same.mean() > 0.9  # leaves are rounded
    (tmp_path / "other.npz").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="no model of the assembler"):
        AssemblyModel.load(tmp_path / "other.npz")


def test_of_two_likely_counts_one_is_said() -> None:
    rows = np.array([[1.0, 90.0, 0.0, 255.0]])
    scores = np.full(len(BINS), -20.0)
    scores[np.isin(BINS, (126, 166))] = 0, 0.5
    both = network_of(scores, INPUTS.count)
    for expected, near in ((140, 126), (150, 166)):  # by trees, whose mean is neither
        (found,) = counts_by(step(0, 0, expected, expected), both).predict(rows)
        assert abs(found - near) <= assembly.STEP
    (found,) = counts_by(step(0, 0, 143, 143)).predict(rows)
    assert found == 143


def test_what_is_likely_twice_is_less_certain() -> None:
    rows = np.array([[1.0, 90.0, 0.0, 255.0]])
    scores = np.full(len(BINS), -20.0)
    scores[BINS == 126] = 0
    once = counts_by(step(0, 0, 126, 126), network_of(scores, INPUTS.count)).certainty(rows)
    scores[BINS == 166] = 5
    twice = counts_by(step(0, 0, 126, 126), network_of(scores, INPUTS.count)).certainty(rows)
    assert 0.5 < twice[0] < once[0] <= 1


def test_inputs_are_logarithms_steps_and_names() -> None:
    rows = np.array([[1.0, 5.0, 80.0], [2.0, 5.0, 90.0], [4.0, 5.0, 90.0], [4.0, 5.0, 90.0]])
    inputs = NumberInputs.of(rows, most=4, named=-1)
    seen = inputs(rows)
    assert inputs.count == seen.shape[1] == 7
    np.testing.assert_allclose(seen[:, :5].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_array_equal(seen[:, 1], 0)  # of a number that is always the same
    (between,) = inputs(np.array([[3.0, 6.0, 86.0]]))
    np.testing.assert_allclose(between[3:5] + inputs.share, [1, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(between[5:], [1, 0])  # the name before
    (first,) = inputs(np.array([[3.0, 6.0, 70.0]]))
    np.testing.assert_array_equal(first[5:], [1, 0])
    many = NumberInputs.of(np.arange(200.0).reshape(100, 2), most=4, named=1)
    assert len(many.feature) == 4


def test_arrays_that_are_no_network_are_refused() -> None:
    arrays = network_of(np.zeros(len(BINS)), 5).arrays()
    arrays["vectors"] = arrays["vectors"][1:]
    with pytest.raises(ValueError, match="do not fit"):
        DenseNetwork.from_arrays(arrays, "")


def scheduled(name: str, target: str = "sm_90a") -> Scheduled:
    found = CudaTarget.named(target)
    assert found is not None
    return next(s for s in found.strategies if s.name == name)


@pytest.mark.parametrize("name", ["int8", "planes"])
def test_the_shipped_model_knows_the_numbers_of_todays_plans(name: str) -> None:
    own, model = scheduled(name), shipped_assembly()
    assert assembly.PATH.stat().st_size < 300_000
    for schedule in own.candidates(W4A8)[::40]:
        assert isinstance(own.strategy, KnownCode)
        code = own.strategy.code(W4A8, schedule)
        assert (code is None) == (schedule.kind == "wgmma")  # sets its registers itself
        assert code is None or set(model.families[code.family].names) <= set(code.numbers)


def test_choices_are_made_with_what_is_expected() -> None:
    own = scheduled("int8")
    for schedule in own.able(W4A8, 1)[::10]:
        (expected,) = own.assembled(W4A8)[schedule]
        (features,) = own.described(W4A8, schedule, 1)
        plain = own.strategy.features(W4A8, schedule, 1)
        if schedule.kind == "wgmma":
            assert expected is None and features.registers == plain.registers
            continue
        assert expected is not None and features.registers == expected.registers
        assert features.issued == pytest.approx(plain.issued * expected.slots)
    stored = replace(W4A8, weight=parse_scheme("w4:channel"), accumulators=True)
    assert set(own.assembled(stored).values()) == {(None,)}
    assert set(scheduled("int8", "sm_75").assembled(W4A8).values()) == {(None,)}


def test_what_surely_spills_is_not_chosen_and_bounds_are_set(monkeypatch) -> None:
    own = scheduled("int8")
    best, *others = own.able(W4A8, 64)
    known = {s: (Assembly(128, 0, s == best, 1.0),) for s in own.candidates(W4A8)}
    known[others[0]] = (Assembly(130, 136, False, 1.0),)
    monkeypatch.setitem(own._assembled, W4A8, known)
    assert best not in own.able(W4A8, 64) and others[0] in own.able(W4A8, 64)
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        own.kernel(W4A8, others[0]).emit(module, SM_90A)
        bound = [op.operation.attributes for op in module.body.operations]
    (of_kernel,) = [a for a in bound if REGISTERS in a]
    assert ir.IntegerAttr(of_kernel[REGISTERS]).value == 136
