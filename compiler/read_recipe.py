"""Where a recipe comes from: a text or a file."""

from __future__ import annotations

from pathlib import Path

from abqc.errors import RecipeError

from .recipe import FLOAT, Recipe


def parse_recipe(recipe: str | Path) -> Recipe:
    """Read a recipe: a text of one or several lines, or the path of a file.

    A string without a line break that names a file is that file. Raises RecipeError with the
    position and what was expected there.
    """
    if isinstance(recipe, Path):
        return _parsed(_read(recipe), f"{recipe}, ")
    if "\n" not in recipe and recipe and len(recipe) < 4096 and Path(recipe).is_file():
        return _parsed(_read(Path(recipe)), f"{recipe}, ")
    return _parsed(recipe, "")


def _parsed(text: str, source: str) -> Recipe:
    if text == FLOAT.text:
        return FLOAT  # without the parser, which takes a tenth of a second to import
    from .recipe_text import parse

    return parse(text, source)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
