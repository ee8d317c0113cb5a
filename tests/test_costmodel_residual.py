"""Trees, residuals, sample files, evaluation, and the model that a target gets."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from abqc.costmodel import features, samples, trees
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.evaluate import evaluate, spearman
from abqc.costmodel.gpu_analytic import GpuAnalyticModel
from abqc.costmodel.hardware import gpu_for
from abqc.costmodel.interface import KernelFeatures, MatmulFeatures, Sample
from abqc.costmodel.load import model_for, model_path, shipped_model
from abqc.errors import ArtifactError, InputError
from test_costmodel_gpu import rows, tile

QUICK = partial(trees.fit, growth=trees.Growth(trees=40))


def matmuls() -> list[MatmulFeatures]:
    return [
        MatmulFeatures(strategy, m, n, k, p, 8, weight_bytes=n * k * p // 8)
        for strategy in ("int8", "bitplane")
        for m in (1, 16, 128)
        for n in (256, 1024, 4096)
        for k in (256, 1024)
        for p in (2, 4, 8)
    ]


def machine(f: MatmulFeatures) -> float:
    """A machine whose int8 kernels are 3 times slower than described, for many rows 6 times."""
    factor = (6.0 if f.m > 16 else 3.0) if f.strategy == "int8" else 1.0
    return factor * AnalyticModel().predict(f)


def measured() -> list[Sample]:
    return [Sample(f, machine(f), "box", "", "2026-11-24", 9) for f in matmuls()]


def fitted() -> AnalyticModel:
    model = AnalyticModel()
    model.fit(measured(), QUICK)
    return model


def walk(forest: trees.Trees, row: np.ndarray) -> float:
    """One row down every tree, one node at a time."""
    total = forest.base
    for feature, threshold, leaf in zip(forest.feature, forest.threshold, forest.leaf, strict=True):
        node = 0
        while node < len(feature):
            node = 2 * node + (1 if row[feature[node]] <= threshold[node] else 2)
        total += leaf[node - len(feature)]
    return total


def test_trees_learn_an_interaction():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 5))
    y = np.where(x[:, 1] > 0, 2.0, 0.0) * (x[:, 3] > 0.2) + 0.5 * x[:, 0]
    forest = trees.fit(x, y)
    unseen = rng.uniform(-1, 1, (200, 5))
    expected = np.where(unseen[:, 1] > 0, 2.0, 0.0) * (unseen[:, 3] > 0.2) + 0.5 * unseen[:, 0]
    assert np.abs(forest.predict(unseen) - expected).mean() < 0.1


def test_trees_predict_what_walking_them_gives():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 4)), rng.standard_normal(60)
    forest = trees.fit(x, y, trees.Growth(trees=7, depth=3))
    assert forest.depth == 3
    np.testing.assert_allclose(forest.predict(x), [walk(forest, row) for row in x])


def test_few_samples_give_their_mean():
    forest = trees.fit(np.zeros((3, 2)), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(forest.predict(np.ones((2, 2))), 2.0)


def test_trees_survive_json():
    x = np.random.default_rng(2).standard_normal((50, 3))
    forest = QUICK(x, x[:, 0] * x[:, 1])
    again = trees.Trees.from_json(json.loads(json.dumps(forest.to_json())), features=3)
    np.testing.assert_array_equal(again.predict(x), forest.predict(x))
    with pytest.raises(ValueError, match="features that do not exist"):
        trees.Trees.from_json(forest.to_json(), features=1)


def test_residual_learns_a_machine():
    model = fitted()
    errors = [model.predict(f) / machine(f) - 1 for f in matmuls()]
    assert np.abs(errors).max() < 0.25
    # In between of what was measured.
    f = MatmulFeatures("int8", 64, 512, 512, 4, 8, weight_bytes=1 << 17)
    assert 4 < model.predict(f) / AnalyticModel().predict(f) < 8


@pytest.mark.parametrize(
    "changes",
    [{"n": 64}, {"threads": 2}, {"weight_bits": 1}, {"activation_bits": 4}, {"isa": "avx2"}],
    ids=str,
)
def test_residual_is_one_outside_of_what_was_measured(changes):
    f = replace(matmuls()[0], **changes)
    assert fitted().predict(f) == AnalyticModel().predict(f)


def test_sizes_beyond_the_largest_are_answered_as_that():
    large = replace(matmuls()[0], m=128, n=4096, k=1024)
    larger = replace(large, m=4096, n=50_000, k=8192)
    analytic, model = AnalyticModel(), fitted()
    factor = model.predict(large) / analytic.predict(large)
    assert model.predict(larger) / analytic.predict(larger) == pytest.approx(factor, rel=0.3)


def test_status_names_samples_device_and_date():
    assert AnalyticModel().status == "analytic only"
    assert fitted().status == "analytic x residual (108 samples, box, 2026-11-24)"


def test_fitted_model_survives_a_file(tmp_path: Path):
    model = fitted()
    model.save(tmp_path / "model.json")
    again = AnalyticModel.load(tmp_path / "model.json")
    assert again.status == model.status
    assert [again.predict(f) for f in matmuls()] == [model.predict(f) for f in matmuls()]


def test_model_trained_on_other_features_is_refused(tmp_path: Path, monkeypatch):
    fitted().save(tmp_path / "model.json")
    monkeypatch.setitem(features.MATMUL, "phase_of_the_moon", lambda f: 0.0)
    with pytest.raises(ArtifactError, match="other features"):
        AnalyticModel.load(tmp_path / "model.json")


def kernels() -> list[KernelFeatures]:
    return [
        f
        for n in (2048, 4096, 8192)
        for m in (1, 4, 16)
        for f in (
            rows(m, n, 4096, 4),
            tile("int8", m, n, 4096, 4, 8, block=(16, 64)),
            tile("int8", m, n, 4096, 4, 8, block=(16, 128)),
        )
    ]


def test_gpu_model_learns_too(tmp_path: Path):
    model = GpuAnalyticModel(gpu_for("sm_80"))
    found = [
        Sample(f, (2.0 if f.kind == "tile" else 1.0) * model.predict(f), "A100") for f in kernels()
    ]
    model.fit(found, QUICK)
    model.save(tmp_path / "model.json")
    again = GpuAnalyticModel.load(tmp_path / "model.json")
    for sample in found:
        assert again.predict(sample.features) == pytest.approx(sample.seconds, rel=0.3)
    # Asked before it is assembled, and measured with its registers: the same factor.
    f = found[1].features
    known = replace(f, registers=100)
    assert again.predict(known) / model.estimate(known).seconds == pytest.approx(
        again.predict(f) / model.estimate(f).seconds, rel=0.2
    )


def test_fit_refuses_nothing_and_others():
    with pytest.raises(InputError, match="no samples"):
        AnalyticModel().fit([])
    with pytest.raises(InputError, match="not of Zen 4"):
        AnalyticModel().fit([Sample(kernels()[0], 1e-6)])


def test_samples_survive_a_file(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    counted = replace(measured()[0].features, operations=(("arith.addf", 8), ("scf.for", 2)))
    gpu = Sample(kernels()[0], 1e-5, "NVIDIA A100", "13.0", "2026-11-24", 5)
    written = [*measured()[:3], Sample(counted, 1e-5), gpu]
    samples.write(path, written[:2])
    samples.write(path, written[2:])
    assert samples.read(path) == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"kind": "poem"}, "'poem' is no kind"),
        ({"seconds": -1}, "-1.0 seconds"),
        ({"features": {"strategy": "int8"}}, "missing"),
    ],
)
def test_what_is_no_sample_is_named_by_its_line(tmp_path: Path, change, message):
    path = tmp_path / "samples.jsonl"
    samples.write(path, measured()[:1])
    with open(path, "a") as file:
        file.write(json.dumps(samples.to_json(measured()[0]) | change) + "\n")
    with pytest.raises(InputError, match="line 2") as error:
        samples.read(path)
    assert message in str(error.value)


def test_spearman():
    assert spearman(np.array([1.0, 2.0, 9.0]), np.array([10.0, 20.0, 30.0])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    tied = spearman(np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert tied == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(np.array([1.0]), np.array([1.0])))


def test_evaluation_is_held_out_and_by_strategy():
    result = evaluate(AnalyticModel(), measured(), QUICK)
    by_group = {c.group: c for c in result.comparisons}
    assert set(by_group) == {"int8 avx512", "bitplane avx512", "all"}
    assert by_group["bitplane avx512"].before.mape == pytest.approx(0)
    assert by_group["int8 avx512"].before.mape > 0.6
    assert by_group["int8 avx512"].after.mape < 0.3
    assert result.problems == 54
    assert result.regret_after < result.regret_before


def test_evaluation_holds_out_whole_products():
    """Products whose times depend on nothing that a model is told: others say nothing of them, and
    other rows of the same product, which say all, are held out with it."""
    rng = np.random.default_rng(0)
    products = [
        (int(n), int(k))
        for n, k in zip(rng.permutation(40) + 900, rng.permutation(40) + 900, strict=True)
    ]
    taken = []
    for n, k in products:
        factor = math.exp(rng.normal())
        for m in (32, 40, 48, 56, 64):
            f = MatmulFeatures("int8", m, n, k, 4, 8, weight_bytes=n * k // 2)
            taken.append(Sample(f, factor * AnalyticModel().predict(f), "box", "", "2026-11-24", 9))
    total = evaluate(AnalyticModel(), taken, QUICK).total
    assert total.after.mape > 0.9 * total.before.mape


def test_a_target_gets_the_tuned_model_where_there_is_one(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path))
    assert "tuned on this machine" not in model_for("cpu").status
    assert isinstance(model_for("sm_90a"), GpuAnalyticModel)
    path = model_path("cpu")
    path.parent.mkdir(parents=True)
    fitted().save(path)
    assert model_for("cpu").status.endswith("(108 samples, box, 2026-11-24), tuned on this machine")
    path.write_text("{}")
    assert "abqc tune" in model_for("cpu").warning
    assert model_for("cpu").status == shipped_model("cpu").status
