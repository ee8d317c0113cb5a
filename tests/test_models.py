"""Real models end to end against onnxruntime on the float model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.compiler.evaluation.metrics import cosine, relative_error
from abqc.runtime.model import Model

pytest.importorskip("onnxruntime")
from abqc.compiler.onnxruntime_peer import Peer

Compiled = Callable[[str, str], Path]
Feeds = dict[str, np.ndarray]
RealModel = Callable[[str], Path]

RECIPES = ("none", "w8a8", "w4a8", "w4a4 rotate", "w3v a8")
EMBEDDING = 3  # minilm-l3: index of the output with one vector a sentence


def tokens(batch: int, length: int, seed: int = 0) -> Feeds:
    """Random ids for minilm-l3; the second half of the last row is padding."""
    ids = np.random.default_rng(seed).integers(1000, 30000, (batch, length))
    mask = np.ones((batch, length), np.int64)
    if batch > 1:
        mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def image_feeds(name: str, digits: tuple[np.ndarray, np.ndarray]) -> Feeds:
    images, _ = digits
    return {"X": images} if name == "digits_mlp" else {"image": images.reshape(-1, 1, 8, 8)}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def page() -> np.ndarray:
    """A white page with lines of dark strokes, which ocr-det takes for text; f32 [1, 3, 96, 128].

    On noise its output is within 1e-3 of zero, where onnxruntime's sigmoid is coarse.
    """
    image = np.ones((1, 3, 96, 128), np.float32)
    strokes = np.random.default_rng(0).random((2, 1, 100)) < 0.5
    image[:, :, 20:34, 14:114] -= 1.8 * strokes[0]
    image[:, :, 56:70, 14:114] -= 1.8 * strokes[1]
    return image


VAD = {
    "input": noise(1, 576) / 10,
    "state": noise(2, 1, 128) / 10,
    "sr": np.array(16000, np.int64),
}


def worst_error(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """Largest error of the float outputs; shapes and integer outputs must be equal."""
    assert [a.shape for a in actual] == [e.shape for e in expected]
    floats = [(e, a) for e, a in zip(expected, actual, strict=True) if e.dtype.kind == "f"]
    for e, a in zip(expected, actual, strict=True):
        if e.dtype.kind != "f":
            np.testing.assert_array_equal(a, e)
    return max(relative_error(e, a) for e, a in floats)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_digits(
    compiled: Compiled, real_model: RealModel, digits: tuple, name: str, recipe: str
) -> None:
    feeds = image_feeds(name, digits)
    expected = Peer(real_model(name)).run(feeds)
    actual = abqc.load(compiled(name, recipe)).run(feeds)
    if recipe == "none":
        assert worst_error(expected, actual) <= 1e-4
    accuracies = [np.mean(y[0].argmax(1) == digits[1]) for y in (expected, actual)]
    assert accuracies[1] >= accuracies[0] - (0.02 if recipe == "w8a8" else 0.05)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 128), (3, 40), (1, 512)])
def test_minilm_float(compiled: Compiled, real_model: RealModel, batch: int, length: int) -> None:
    feeds = tokens(batch, length)
    expected = Peer(real_model("minilm-l3")).run(feeds)
    assert worst_error(expected, abqc.load(compiled("minilm-l3", "none")).run(feeds)) <= 1e-4


@pytest.mark.parametrize(
    ("recipe", "least"), [("w8a8", 0.99), ("w4a8", 0.85), ("w4a4 rotate", 0.6)]
)
@pytest.mark.parametrize("length", [1, 512])
def test_minilm_lengths(
    compiled: Compiled, real_model: RealModel, recipe: str, least: float, length: int
) -> None:
    feeds = tokens(1, length)
    expected = Peer(real_model("minilm-l3")).run(feeds)[EMBEDDING]
    actual = abqc.load(compiled("minilm-l3", recipe)).run(feeds)[EMBEDDING]
    assert cosine(expected, actual).min() > least


@pytest.fixture(scope="module")
def float_embeddings(real_model: RealModel, sentences: Feeds) -> np.ndarray:
    return Peer(real_model("minilm-l3")).run(sentences)[EMBEDDING]


def mean_cosine(library: Path, sentences: Feeds, expected: np.ndarray) -> float:
    actual = abqc.load(library).run(sentences)[EMBEDDING]
    return float(cosine(expected, actual).mean())


@pytest.mark.parametrize(("recipe", "bar"), [("w8a8", 0.997), ("w4a8", 0.93)])
def test_minilm_sentences(
    compiled: Compiled, sentences: Feeds, float_embeddings: np.ndarray, recipe: str, bar: float
) -> None:
    assert mean_cosine(compiled("minilm-l3", recipe), sentences, float_embeddings) >= bar


def test_rotation_helps_at_four_bits(
    compiled: Compiled, sentences: Feeds, float_embeddings: np.ndarray
) -> None:
    plain, rotated = (
        mean_cosine(compiled("minilm-l3", recipe), sentences, float_embeddings)
        for recipe in ("w4a4", "w4a4 rotate")
    )
    assert rotated > plain


def test_forms_of_the_kernels_agree(compiled: Compiled) -> None:
    """Activations that came through exp and rsqrt may differ by a code (docs/numerics.md)."""
    path = compiled("minilm-l3", "w8a8")
    feeds = tokens(1, 32)
    isas = runnable_isas(path)
    expected = abqc.load(path, isa=isas[0]).run(feeds)[EMBEDDING]
    for isa in isas[1:]:
        actual = abqc.load(path, isa=isa).run(feeds)[EMBEDDING]
        assert cosine(expected, actual).min() > 0.9995


def runnable_isas(path: Path) -> list[str]:
    """The ISAs of an artifact that this CPU can run."""
    isas = []
    for isa in abqc.load(path).manifest["isas"]:
        try:
            abqc.load(path, isa=isa)
        except abqc.AbqcError:
            continue
        isas.append(isa)
    return isas


def test_thread_counts_agree(compiled: Compiled) -> None:
    """The same accumulators, and every float operation in the same order."""
    path, feeds = compiled("minilm-l3", "w8a8"), tokens(2, 33)
    one, three = (abqc.load(path, threads=count).run(feeds) for count in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_models_in_two_threads_at_once(compiled: Compiled, digits: tuple) -> None:
    models: list[tuple[Model, Feeds]] = [
        (abqc.load(compiled("minilm-l3", "w8a8"), threads=2), tokens(1, 64)),
        (abqc.load(compiled("digits_cnn", "w4a8"), threads=2), image_feeds("digits_cnn", digits)),
    ]
    alone = [model.run(feeds) for model, feeds in models]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            (i, pool.submit(model.run, feeds))
            for _ in range(8)
            for i, (model, feeds) in enumerate(models)
        ]
        for i, job in jobs:
            for expected, actual in zip(alone[i], job.result(), strict=True):
                np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        ("ocr-cls", {"x": noise(2, 3, 48, 192)}),
        ("vad-ifless", VAD),
        pytest.param("minilm-l6-int8", None, marks=pytest.mark.slow),
        pytest.param("ocr-det", {"x": page()}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_models_in_float(
    compiled: Compiled, real_model: RealModel, name: str, feeds: Feeds | None
) -> None:
    peer = Peer(real_model(name))
    if feeds is None:
        feeds = tokens(2, 24)
        if len(peer.session.get_inputs()) == 3:
            feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    assert worst_error(peer.run(feeds), abqc.load(compiled(name, "none")).run(feeds)) <= 1e-4
