"""Broken, hostile and merely odd models: one line with the node's name, nothing written, no crash.

`test_fuzz_models.py` looks for more of them; what it finds is added to `hostile/models.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.backend import prepare_modules
from hostile.attempt import attempt
from hostile.models import MODELS, text_files

# Sizes that an input decides are only known when the model runs.
REFUSED = ("refused", "run-error")


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    prepare_modules()


@pytest.mark.parametrize("name", MODELS)
def test_is_refused_in_one_line(name: str) -> None:
    hostile = MODELS[name]
    result = attempt(hostile.write)
    assert result["status"] in REFUSED, result
    assert len(result["message"].splitlines()) == 1
    assert hostile.node is None or f"'{hostile.node}'" in result["message"], result["message"]
    assert hostile.word in result["message"]
    assert not result["left"]
    assert not result.get("written")


@pytest.mark.parametrize("name", text_files())
def test_is_no_model(name: str) -> None:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(text_files()[name])
        return path

    result = attempt(write)
    assert result["status"] == "refused", result
    assert "model.onnx" in result["message"]
