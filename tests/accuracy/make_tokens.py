"""Token files of the accuracy table: windows to measure on, windows to calibrate on.

    python tests/accuracy/make_tokens.py      # needs `tokenizers` and the texts

Windows are of WINDOW tokens and do not overlap. Those that are measured are the first of the
handbook, as `abqc eval --text handbook.txt --windows 40` takes them; those for calibrating are
spread evenly over the Jargon File and Python's documentation, half from each, in turns, so that a
prefix is as mixed as the whole. Files are `.npz` with arrays named as the decoder's inputs,
int64 [windows, WINDOW]; caches are empty and not in the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy.texts import fetch_text, folder, sentences
from models.fetch import Unavailable

WINDOW = 512
EVALUATED = 40
CALIBRATED = 128
CALIBRATED_ROWS = 32  # windows that our own rows take of these: minutes, not an hour, for a row
SENTENCES = 500
CALIBRATION_SENTENCES = 2048


def load_tokenizer(path: Path) -> object:
    """The tokenizer of a tokenizer.json, without truncation and padding. Raises Unavailable."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise Unavailable("the package tokenizers is missing: pip install tokenizers") from error
    if not path.is_file():
        raise Unavailable(f"there is no file {path}")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def windows(text: str, tokenizer: Path) -> np.ndarray:
    """All windows of a text, int64 [count, WINDOW]; what does not fill one is dropped."""
    content = fetch_text(text).read_text("utf-8")
    ids = np.array(load_tokenizer(tokenizer).encode(content).ids, np.int64)
    count = len(ids) // WINDOW
    return ids[: count * WINDOW].reshape(count, WINDOW)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows at even distances."""
    return rows[np.arange(count) * len(rows) // count]


def decoder_inputs(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of a decoder with empty caches for windows `ids` [count, WINDOW]."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.ascontiguousarray(positions),
    }


def evaluation_windows(tokenizer: Path) -> np.ndarray:
    return windows("handbook", tokenizer)[:EVALUATED]


def calibration_windows(tokenizer: Path) -> np.ndarray:
    """[CALIBRATED, WINDOW], of the two texts in turns."""
    halves = [spread(windows(name, tokenizer), CALIBRATED // 2) for name in ("jargon", "python")]
    return np.stack(halves, axis=1).reshape(CALIBRATED, WINDOW)


def sentence_inputs(chosen: list[str], tokenizer: Path) -> dict[str, np.ndarray]:
    """Inputs of a sentence encoder, int64 [count, longest], padded with 0."""
    encoded = [e.ids for e in load_tokenizer(tokenizer).encode_batch(chosen)]
    longest = max(map(len, encoded))
    ids = np.zeros((len(encoded), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def save(name: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write `arrays` as an .npz file of the folder; it appears whole or not at all."""
    target = folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_suffix(".tmp.npz")
    np.savez(made, **arrays)
    return made.replace(target)


def decoder_files(tokenizer: Path) -> list[Path]:
    """smollm2-eval.npz and smollm2-calib.npz. Raises Unavailable."""
    return [
        save("smollm2-eval.npz", decoder_inputs(evaluation_windows(tokenizer))),
        save("smollm2-calib.npz", decoder_inputs(calibration_windows(tokenizer))),
    ]


def sentence_files(tokenizer: Path) -> list[Path]:
    """minilm-eval.npz (of the handbook) and minilm-calib.npz (of the other two, in turns)."""
    measured = sentences("handbook", SENTENCES)
    halves = [sentences(name, CALIBRATION_SENTENCES // 2) for name in ("jargon", "python")]
    calibrated = [sentence for pair in zip(*halves, strict=True) for sentence in pair]
    return [
        save("minilm-eval.npz", sentence_inputs(measured, tokenizer)),
        save("minilm-calib.npz", sentence_inputs(calibrated, tokenizer)),
    ]


if __name__ == "__main__":
    from models.fetch import cache_directory

    makers = {"smollm2": decoder_files, "minilm-l6": sentence_files}
    for model, make in makers.items():
        try:
            print(*make(cache_directory() / model / "tokenizer.json"), sep="\n")
        except Unavailable as failure:
            print(f"{model}: {failure}", file=sys.stderr)
