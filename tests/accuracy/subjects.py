"""How each model of the table is measured: the samples, the figures.

A `Subject` says where the float model and the calibration samples are, and measures a compiled
model; figures are what the tables of page.py show.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.evaluation.metrics import WindowLikelihood, cosine, summarize
from abqc.compiler.evaluation.text import compare_windows
from abqc.compiler.onnxruntime_peer import Peer
from accuracy import lines, make_models, make_tokens
from accuracy.cached_logits import CachedLogits
from accuracy.rows import MAMBA, MATMUL_FREE, MINILM, OCR, OFFGRID, ORIGINAL
from accuracy.texts import fetch_text, folder
from models.fetch import exported, fetch

THREADS = int(os.environ.get("ABQC_NUM_THREADS", "2"))
SENTENCE_BATCH = 50
Figures = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """`onnx` and `calibration` give paths and make the files; both may raise Unavailable."""

    onnx: Callable[[], Path]
    calibration: Callable[[Path], Path]
    measure: Callable[[Path, Any], Figures]


def saved(name: str, make: Callable[[], dict[str, np.ndarray]]) -> Path:
    """The file `name` of the folder, made where it is not there."""
    path = folder() / name
    return path if path.exists() else make_tokens.save(name, make())


def decoder_windows(onnx: Path) -> Path:
    """All windows to calibrate on."""
    tokenizer = onnx.with_name("tokenizer.json")
    return saved(
        "smollm2-calib.npz",
        lambda: make_tokens.decoder_inputs(make_tokens.calibration_windows(tokenizer)),
    )


def decoder_calibration(onnx: Path) -> Path:
    """The first of them, that rows are calibrated on."""

    def first() -> dict[str, np.ndarray]:
        with np.load(decoder_windows(onnx)) as data:
            return {name: data[name][: make_tokens.CALIBRATED_ROWS] for name in data.files}

    return saved(f"smollm2-calib-{make_tokens.CALIBRATED_ROWS}.npz", first)


def evaluation_ids(onnx: Path) -> np.ndarray:
    """The windows that are measured, int64 [EVALUATED, WINDOW]."""
    tokenizer = onnx.with_name("tokenizer.json")
    path = saved(
        "smollm2-eval.npz",
        lambda: make_tokens.decoder_inputs(make_tokens.evaluation_windows(tokenizer)),
    )
    with np.load(path) as data:
        return data["input_ids"]


def float_logits(onnx: Path) -> CachedLogits:
    return CachedLogits(onnx, folder() / f"logits-{onnx.parent.name}", THREADS)


def measure_decoder(onnx: Path, model: Any) -> Figures:
    """`model`: anything with `inputs`, `outputs`, `path` and `run`, as a compiled model has."""
    return _measure_windows(onnx, model, evaluation_ids(onnx))


def _measure_windows(onnx: Path, model: Any, ids: np.ndarray) -> Figures:
    (windows,) = compare_windows(
        float_logits(onnx), [model], ids.ravel(), make_tokens.WINDOW, len(ids)
    )
    return likelihood_figures(windows)


def likelihood_figures(windows: list[WindowLikelihood]) -> Figures:
    """The summary, and every window's difference, so that rows can be compared in pairs."""
    differences = [w.nll_actual - w.nll_expected for w in windows]
    return asdict(summarize(windows)) | {"differences": differences}


def mamba_calibration(onnx: Path) -> Path:
    tokenizer = onnx.with_name("tokenizer.json")
    return saved(
        "mamba-calib.npz", lambda: {"input_ids": make_tokens.calibration_windows(tokenizer)}
    )


def measure_mamba(onnx: Path, model: Any) -> Figures:
    tokenizer = onnx.with_name("tokenizer.json")
    path = saved("mamba-eval.npz", lambda: {"input_ids": make_tokens.evaluation_windows(tokenizer)})
    with np.load(path) as data:
        return _measure_windows(onnx, model, data["input_ids"])


def byte_windows(*texts: str) -> np.ndarray:
    """The first windows of texts, a token a byte, as many of each: int64 [EVALUATED, WINDOW]."""
    count = make_tokens.EVALUATED // len(texts)
    rows = []
    for name in texts:
        content = np.frombuffer(fetch_text(name).read_bytes(), np.uint8)
        rows.append(content[: count * make_tokens.WINDOW].reshape(count, -1))
    return np.concatenate(rows).astype(np.int64)


def matmul_free_calibration(onnx: Path) -> Path:
    windows = byte_windows("jargon", "python")
    return saved("matmul-free-calib.npz", lambda: {"input_ids": windows})


def measure_matmul_free(onnx: Path, model: Any) -> Figures:
    return _measure_windows(onnx, model, byte_windows("handbook"))


def sentence_samples(name: str) -> dict[str, np.ndarray]:
    with np.load(folder() / name) as data:
        return dict(data)


def minilm_calibration(onnx: Path) -> Path:
    path = folder() / "minilm-calib.npz"
    if not path.exists():
        make_tokens.sentence_files(onnx.with_name("tokenizer.json"))
    return path


def measure_encoder(onnx: Path, model: Any) -> Figures:
    """Cosine of each sentence's embedding with the float model's, over 500 of the handbook.

    A batch of sentences runs at the length of its longest.
    """
    minilm_calibration(onnx)
    samples = sentence_samples("minilm-eval.npz")
    peer = Peer(onnx, threads=THREADS)
    at = [spec.name for spec in model.outputs].index("sentence_embedding")
    cosines = []
    for begin in range(0, len(samples["input_ids"]), SENTENCE_BATCH):
        part = {n: a[begin : begin + SENTENCE_BATCH] for n, a in samples.items()}
        longest = int(part["attention_mask"].sum(1).max())
        feeds = {n: np.ascontiguousarray(a[:, :longest]) for n, a in part.items()}
        cosines.append(cosine(peer.run(feeds)[at], model.run(feeds)[at]))
    found = np.concatenate(cosines)
    return {"sentences": len(found), "cosine": float(found.mean()), "worst": float(found.min())}


def ocr_calibration(onnx: Path) -> Path:
    return saved("ocr-calib.npz", lambda: {"x": lines.calibration_images()})


@cache
def _float_error_rates(onnx: Path) -> dict[int, float]:
    peer, characters = Peer(onnx, threads=THREADS), lines.alphabet(onnx)
    return {
        noise: lines.character_error_rate(lambda x: peer.run({"x": x})[0], characters, noise)
        for noise in lines.NOISES
    }


def measure_ocr(onnx: Path, model: Any) -> Figures:
    """Character error rate at every noise, of the float model and of the compiled one."""
    characters = lines.alphabet(onnx)
    return {
        "lines": lines.LINES,
        "noise": list(lines.NOISES),
        "expected": [_float_error_rates(onnx)[noise] for noise in lines.NOISES],
        "actual": [
            lines.character_error_rate(lambda x: model.run({"x": x})[0], characters, noise)
            for noise in lines.NOISES
        ],
    }


SUBJECTS = {
    OFFGRID: Subject(make_models.offgrid, decoder_calibration, measure_decoder),
    ORIGINAL: Subject(lambda: fetch("smollm2"), decoder_calibration, measure_decoder),
    MINILM: Subject(make_models.minilm, minilm_calibration, measure_encoder),
    MAMBA: Subject(lambda: exported("mamba"), mamba_calibration, measure_mamba),
    MATMUL_FREE: Subject(
        lambda: exported("matmul_free"), matmul_free_calibration, measure_matmul_free
    ),
    OCR: Subject(lambda: fetch("ocr-rec"), ocr_calibration, measure_ocr),
}
