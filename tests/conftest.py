"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import abqc
import hypothesis
import numpy as np
import pytest
from models.fetch import Unavailable, fetch

# The same examples every time; `make test-all` draws new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")

# A shell that starts the tests in the background has them ignore what some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Libraries have kernels for this CPU alone, a fourth of the work, where a test does not say "all".
os.environ.setdefault("ABQC_CPU", "native")

DATA = Path(__file__).parent / "models" / "data"


def pytest_collection_finish() -> None:
    """What is imported and collected stays: no garbage collection need look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def untuned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Nothing depends on what `abqc tune` has measured on this machine. Processes of one session
    share what they compile."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist: each has a folder in this one
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABQC_CACHE", str(folder / "abqc-cache"))
        yield


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """The path of a real model by name (models/fetch.py); skips where it cannot be had."""

    def path_of(name: str) -> Path:
        if name.startswith("digits"):
            return DATA / f"{name}.onnx"
        try:
            return fetch(name)
        except Unavailable as error:
            pytest.skip(str(error))

    return path_of


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """200 test images f32 [200, 64] in 0 .. 1, and their labels."""
    with np.load(DATA / "digits.npz") as data:
        return data["images"], data["labels"]


@pytest.fixture(scope="session")
def sentences() -> dict[str, np.ndarray]:
    """Token ids and attention mask of 200 real sentences, int64 [200, 44]-like, padded."""
    with np.load(DATA / "sentences.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def compiled(
    real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The library of a real model under a recipe; every pair is compiled once a session."""
    directory = tmp_path_factory.mktemp("compiled")
    libraries: dict[tuple[str, str], Path] = {}

    def library_of(name: str, recipe: str) -> Path:
        if (name, recipe) not in libraries:
            output = directory / f"{name}-{recipe.replace(' ', '-')}.so"
            abqc.compile(real_model(name), quant=recipe, output=output)
            libraries[name, recipe] = output
        return libraries[name, recipe]

    return library_of
