"""Rendered lines of text for ocr-rec, and the character error rate of what it reads.

Labels are free and without number: a line of the handbook is drawn with Pillow's own font, noise is
added, and what the model reads (greedy CTC) is compared with what was drawn. Needs Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accuracy.texts import fetch_text
from models.fetch import Unavailable

LINES = 300
CALIBRATED = 96
NOISES = (20, 60)  # standard deviation, of 255
HEIGHT = 48
FONT_SIZE = 30
LONGEST = 40  # characters
CALIBRATION_WIDTH = 640


def text_lines(text: str, count: int) -> list[str]:
    """`count` lines of whole words of printable ASCII, spread evenly over a text."""
    words = [w for w in fetch_text(text).read_text("utf-8").split() if w.isascii()]
    found, line = [], ""
    for word in words:
        if len(line) + 1 + len(word) > LONGEST:
            found.append(line)
            line = ""
        line = f"{line} {word}".strip()
    found = [line for line in found if 20 <= len(line) <= LONGEST]
    return [found[i * len(found) // count] for i in range(count)]


def render(line: str, noise: float, rng: np.random.Generator) -> np.ndarray:
    """A line as the model takes it: f32 [3, HEIGHT, width], black on white, -1 .. 1."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise Unavailable("the package pillow is missing: pip install pillow") from error
    font = ImageFont.load_default(FONT_SIZE)
    width = int(font.getlength(line)) + 16
    image = Image.new("L", (width, HEIGHT), 255)
    ImageDraw.Draw(image).text((8, HEIGHT // 2), line, fill=0, font=font, anchor="lm")
    pixels = np.asarray(image, np.float32)[None].repeat(3, 0)
    noisy = np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255)
    return (noisy / 127.5 - 1).astype(np.float32)


def calibration_images() -> np.ndarray:
    """f32 [CALIBRATED, 3, HEIGHT, CALIBRATION_WIDTH] of the Jargon File, padded with 0."""
    rng = np.random.default_rng(1)
    images = np.zeros((CALIBRATED, 3, HEIGHT, CALIBRATION_WIDTH), np.float32)
    for number, line in enumerate(text_lines("jargon", CALIBRATED)):
        image = render(line, NOISES[number % len(NOISES)], rng)[:, :, :CALIBRATION_WIDTH]
        images[number, :, :, : image.shape[2]] = image
    return images


def alphabet(model: Path) -> list[str]:
    """The characters by class; class 0 is the blank, the last one the space."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"]
    return ["", *characters.split("\n"), " "]


def read(scores: np.ndarray, characters: Sequence[str]) -> str:
    """Greedy CTC of scores [steps, classes]: repeats merge, blanks vanish."""
    best = scores.argmax(-1)
    kept = best[np.concatenate(([True], best[1:] != best[:-1]))]
    return "".join(characters[i] for i in kept)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def character_error_rate(
    run: Callable[[np.ndarray], np.ndarray], characters: Sequence[str], noise: float
) -> float:
    """Edits a character over LINES lines of the handbook; `run` maps [1, 3, H, W] to scores."""
    rng = np.random.default_rng(0)
    edits = total = 0
    for line in text_lines("handbook", LINES):
        edits += edit_distance(line, read(run(render(line, noise, rng)[None])[0], characters))
        total += len(line)
    return edits / total
