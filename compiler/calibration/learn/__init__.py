"""Learned calibration: what gradients find block by block, before weights are encoded (ABQ-LLM).

`blocks.py`, `evaluate.py` and `learned.py` need numpy alone; what learns needs PyTorch, which is
imported only where a recipe asks for it.
"""

from __future__ import annotations

import importlib.util

from abqc.errors import RecipeError


def require_torch() -> None:
    """Raise RecipeError where PyTorch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise RecipeError(
            "the recipe says learn, which needs PyTorch",
            hint="pip install 'abqc[learn]', or leave the word out",
        )
