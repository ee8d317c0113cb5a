"""What is learned with PyTorch: rounding that gradients pass, and models that come nearer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import abqc  # noqa: E402
from abqc.compiler.calibration.dataflow import DataFlow  # noqa: E402
from abqc.compiler.calibration.learn.evaluate import UnknownOperationError  # noqa: E402
from abqc.compiler.calibration.learn.learner import Learner, learner_of  # noqa: E402
from abqc.compiler.calibration.learn.losses import attention_loss, distribution_loss  # noqa: E402
from abqc.compiler.calibration.learn.rounded_block import RoundedBlock, Rounding  # noqa: E402
from abqc.compiler.calibration.learn.rounding import (  # noqa: E402
    LearnedRange,
    rotate,
    round_rows,
)
from abqc.compiler.calibration.runs import Stream  # noqa: E402
from abqc.compiler.calibration.segments import Segment, cut  # noqa: E402
from abqc.dialects import hadamard  # noqa: E402
from abqc.dialects.formats import (  # noqa: E402
    parse_scheme,
    quantize_activation,
    quantize_weight,
    round_activation,
)
from abqc.dialects.weight_store import WeightStore  # noqa: E402
from abqc.errors import RecipeError  # noqa: E402
from abqc.passes.quantization.encoding import Encoding  # noqa: E402
from small_transformers import decoder  # noqa: E402
from test_calibration import blocks, data, reference  # noqa: E402
from test_learn_blocks import simplified  # noqa: E402


@pytest.mark.parametrize("text", ["a4:token:asym", "a8:token:sym", "a1", "a3:tensor:asym:c80"])
def test_rows_are_rounded_as_kernels_do(text: str) -> None:
    scheme = parse_scheme(text)
    x = np.random.default_rng(0).standard_normal((7, 37), np.float32)
    x[2] = 0
    codes, scale, zero = quantize_activation(x, scheme)
    zeros = None if scheme.symmetric else zero[:, None]
    expected = scheme.format.decode(codes, scale[:, None], zeros)
    found = round_rows(torch.from_numpy(x), scheme)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_blocks_of_rows_are_rounded_as_kernels_do() -> None:
    scheme = parse_scheme("amxfp4")
    x = np.random.default_rng(1).standard_normal((5, 70), np.float32)
    found = round_rows(torch.from_numpy(x), scheme)
    np.testing.assert_array_equal(found.numpy(), round_activation(x, scheme))


@pytest.mark.parametrize(
    "text", ["w4:g16:sym", "w3:g16:asym", "w2*", "wt:channel", "mxfp4", "nvfp4", "nf4:g16"]
)
def test_a_range_that_is_whole_is_that_of_the_format(text: str) -> None:
    scheme = parse_scheme(text if text.startswith("w") else f"w{text}")
    weight = np.random.default_rng(2).standard_normal((6, 40), np.float32)
    whole = torch.zeros(6, scheme.n_groups(40))
    range_ = LearnedRange(scheme, whole, whole)
    choice = range_.choice(torch.from_numpy(weight))
    if scheme.format.default_scale == "range":
        expected = quantize_weight(weight, scheme)
        np.testing.assert_array_equal(choice.scale, expected.scale)
        found = range_.round(torch.from_numpy(weight)).numpy()
        np.testing.assert_allclose(found, expected.dequantize(), atol=1e-6)
    begun = LearnedRange.of(weight, scheme).round(torch.from_numpy(weight)).detach().numpy()
    searched = quantize_weight(weight, scheme, search=True).dequantize()
    assert np.square(begun - weight).sum() <= 1.1 * np.square(searched - weight).sum()


@pytest.mark.parametrize(("k", "block"), [(64, 64), (96, 48), (80, 40)])
def test_rotation(k: int, block: int) -> None:
    x = np.random.default_rng(3).standard_normal((3, k), np.float32)
    found = rotate(torch.from_numpy(x), block).numpy()
    np.testing.assert_allclose(found, hadamard.transform(x, block), atol=1e-6)


@pytest.mark.parametrize("block", [0, 40])
def test_codes_stand_for_what_was_learned(block: int) -> None:
    rng = np.random.default_rng(4)
    x, weight = rng.standard_normal((9, 40), np.float32), rng.standard_normal((6, 40), np.float32)
    store, scheme = WeightStore(), parse_scheme("w3:g16:asym")
    store.add("w", weight)
    encoding = Encoding("w", scheme, block, calibrated=True, balance="w.balance")
    rounding = Rounding("x", encoding, learns=True, corrects=True)
    found = RoundedBlock(
        {("n", "w"): rounding},
        store,
        lambda symbol: torch.from_numpy(np.array(store.get(symbol))),
        {"x": x.mean(axis=0)},
    )
    with torch.no_grad():
        for each in found.parameters():
            each += 0.2 * torch.from_numpy(rng.standard_normal(each.shape, np.float32))
    y = found.product("n", torch.from_numpy(x), "w", None).detach().numpy()
    factors = found.balance("x")
    assert factors is not None
    store.add("w.balance", factors)
    codes = found.learned(rounding, encoding).nearest(encoding.weight(store), encoding)
    rows = hadamard.transform(x / factors, block) if block else x / factors
    np.testing.assert_allclose(y, rows @ codes.dequantize().T, atol=1e-4)


def test_gradients_pass_what_is_not_clipped() -> None:
    scheme = parse_scheme("w2:channel:sym")
    weight = torch.tensor([[0.1, -1.0, 4.0, 0.6]], requires_grad=True)
    half = torch.full((1, 1), np.log(0.5).item(), requires_grad=True)
    LearnedRange(scheme, half, half).round(weight).sum().backward()
    assert weight.grad is not None and half.grad is not None
    np.testing.assert_allclose(weight.grad[0, :2], 1)
    assert half.grad.abs().item() > 0


def test_losses_vanish_where_nothing_differs() -> None:
    y = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(y, 1)
    assert distribution_loss(y, y, y).item() == pytest.approx(0, abs=1e-6)
    assert attention_loss(p, p).item() == 0
    assert distribution_loss(y + 1, y, 2 * y).item() > 0.1
    assert attention_loss(torch.softmax(2 * y, 1), p).item() > 0.01


def first_block(tmp_path: Path, recipe: str) -> tuple[Learner, Segment, Stream]:
    model = simplified(decoder("rms"), recipe, tmp_path)
    flow = DataFlow(model.module)
    segments = cut(flow, {product.at: product.name for product in model.products})
    rng = np.random.default_rng(5)
    feeds = [{"ids": rng.integers(0, 40, (2, 5))} for _ in range(6)]
    masks = [None, *(np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]) for _ in range(5))]
    learner = learner_of(model.module, model.unit, feeds, masks, segments, model.products, set())
    return learner, segments[0], Stream.of(feeds, tmp_path)


def test_a_block_with_attention_is_learned(tmp_path: Path) -> None:
    learner, segment, stream = first_block(tmp_path, "w3a4 balance learn rtn")
    learner.before(segment, stream, stream)
    ((before, after),) = learner.losses.values()
    assert after < 0.95 * before
    block = learner.blocks[0]
    assert block.attention
    assert set(learner.learned) == {product.at for product in block.products}
    for product in block.products:
        assert (learner.unit.store.get(product.encoding.balance) > 0).all()
        corrected = learner.learned[product.at].correction is not None
        assert corrected == (product is block.joining)
    assert not learner.unit.notes


def test_a_block_with_an_unknown_operation_is_not_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, segment, stream = first_block(tmp_path, "w3a4 learn rtn")

    def unknown(*_: object) -> None:
        raise UnknownOperationError(learner.flow.operations[0])

    monkeypatch.setattr("abqc.compiler.calibration.learn.learner.Evaluator", unknown)
    learner.before(segment, stream, stream)
    assert not learner.learned
    assert "without learning: its block has" in learner.unit.notes[0]["note"]

    (tmp_path / "strict").mkdir()
    learner, segment, stream = first_block(tmp_path / "strict", "w3a4 learn rtn")
    learner.unit.strict = True
    with pytest.raises(RecipeError, match="without learning"):
        learner.before(segment, stream, stream)


def test_learning_comes_nearer(tmp_path: Path) -> None:
    model = blocks(tmp_path / "blocks.onnx")
    samples, test = data(32), data(16, seed=2)
    expected = reference(model, test)
    errors = {}
    for recipe in ("w4a4 search", "w4a4 learn rtn", "w4a4 balance learn rtn"):
        calib = samples if "learn" in recipe else None
        compiled = abqc.compile(model, quant=recipe, calib=calib, output=model.with_suffix(".so"))
        errors[recipe] = float(np.square(compiled.run(test)[0] - expected).mean())
        assert not compiled.manifest["notes"]
        losses = compiled.manifest.get("calibration", {}).get("learned", {})
        assert all(after <= before for before, after in losses.values())
        assert bool(losses) == bool(calib)
    searched, ranges, both = errors.values()
    assert ranges < 0.9 * searched
    assert both < ranges


def test_what_cannot_be_learned_is_said(tmp_path: Path) -> None:
    model = blocks(tmp_path / "blocks.onnx")
    compiled = abqc.compile(
        model, quant="w2v a8 rotate gptq learn", calib=data(8), output=model.with_suffix(".so")
    )
    assert any("has nothing to learn" in note["note"] for note in compiled.manifest["notes"])
    with pytest.raises(RecipeError, match="needs calibration data"):
        abqc.compile(model, quant="w4a4 learn", output=model.with_suffix(".so"))
