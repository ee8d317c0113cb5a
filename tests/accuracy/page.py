"""docs/accuracy.md from the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy import results
from accuracy.rows import MAMBA, MATMUL_FREE, MINILM, OCR, OFFGRID, ORIGINAL, ROWS, Row

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "accuracy.md"
PEERS = "peer-*"

HEAD = """# Accuracy

What few bits cost. `python tests/accuracy/measure.py` measures the rows,
`peer_llama.py` and `peer_onnxruntime.py` beside it what the peers reach, `measure.py --write`
writes this page from all results. {machines}.

Protocol. smollm2 is SmolLM2-135M-Instruct; its float weights were themselves dequantized from a
4-bit file (Q4_1, groups of 32), on whose grid asymmetric 4 bits in groups of 32 are lossless. So
claims about weights use `smollm2-offgrid`: norm gains folded, the residual stream multiplied by a
random orthogonal matrix, the head untied; in onnxruntime its likelihood differs from smollm2's by
less than 1e-6 nats. Claims about rotating activations use the original weights, since that random
rotation has removed their outliers. Measured are the first 40 windows of 512 tokens of the
Debian Administrator's Handbook, caches empty at the start of each; dNLL is the difference of
negative log-likelihood to the float model in nats a token, paired by window, with its standard
error, KL the divergence from the float model's distribution. Calibration uses 32 windows of other
texts (the Jargon File and Python's documentation). Embedding and head have 8 bits unless a row says
otherwise, here and in the peers; bits a weight are those of all other products, with their scales,
zero points and layout.
"""


def summary(result: dict[str, Any]) -> str:
    """A line for the terminal."""
    size = "float" if result.get("bits") is None else f"{result['bits']:.3f} bits a weight"
    return f"{size}, {figures(result)}"


def figures(result: dict[str, Any]) -> str:
    if "nll_difference" in result:
        return (
            f"dNLL {result['nll_difference']:+.4f} +- {result['standard_error']:.4f}, "
            f"KL {result['kl']:.4f}, top-1 {result['agreement']:.4f}"
        )
    if "cosine" in result:
        return f"cosine {result['cosine']:.5f}, worst {result['worst']:.5f}"
    pairs = zip(result["noise"], result["expected"], result["actual"], strict=True)
    return ", ".join(f"noise {n}: error rate {a:.4f} (float {e:.4f})" for n, e, a in pairs)


def write() -> Path:
    """Write PAGE from the results that there are; the file appears whole or not at all."""
    found = {row.name: results.load(row.name, row.made_of) for row in ROWS}
    text = "\n".join([HEAD.format(machines=_machines(results.all_of("*"))), *_sections(found)])
    made = PAGE.with_suffix(".new")
    made.write_text(text, encoding="utf-8")
    return made.replace(PAGE)


def _machines(measured: list[dict[str, Any]]) -> str:
    """When and where."""
    dates = sorted({result["date"] for result in measured})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "No results yet"
    cpus = sorted({result["cpu"] for result in measured})
    return ", ".join([days, *cpus, "2 threads"])


def _sections(found: dict[str, dict[str, Any] | None]) -> list[str]:
    return [
        "## Language model, weights off the grid\n",
        _decoder_table(OFFGRID, found),
        "## The same weights in other engines\n",
        PEER_NOTE,
        _peer_table(results.all_of(PEERS)),
        "## Language model, original weights\n",
        _decoder_table(ORIGINAL, found),
        "## State space model\n",
        MAMBA_NOTE,
        _decoder_table(MAMBA, found),
        "## MatMul-free language model\n",
        MATMUL_FREE_NOTE,
        _decoder_table(MATMUL_FREE, found),
        "## Sentence encoder\n",
        "minilm-l6 (all-MiniLM-L6-v2), 500 sentences of the handbook, cosine of the sentence's "
        "embedding to the float model's; calibrated on 2,048 sentences of the other two texts.\n",
        _encoder_table(found),
        "## Text recognition\n",
        "ocr-rec (PP-OCRv6 small), 300 rendered lines of the handbook at two levels of noise, "
        "character error rate; calibrated on 96 lines of the Jargon File.\n",
        _ocr_table(found),
    ]


PEER_NOTE = """llama.cpp from llama-cpp-python's source package, quantized from the same weights
in f32 by its own `llama-quantize` with an importance matrix of 128 windows of the same texts;
embedding and head as Q8_0. The types that were used are listed with the number of weights in
millions: 576, the width of the stream, is no multiple of the 256 of K- and I-quants, which fall
back for most products. What they would do shows in the formats marked padded: the same model with
a stream of 768 whose other elements are zeros (their weights are among the millions), its bits
counted as if there were no padding. llama.cpp computes with activations in 8 bits too (Q8_0,
Q8_K). onnxruntime: `quantize_dynamic`, and MatMulNBits over all products but the head, which
stays float.
"""


MAMBA_NOTE = """mamba is trained by `tests/models/export_mamba.py` on one core in less than 20
minutes: 4 layers, width 192, 16 states, 1.2 million weights, 1,024 byte-pair tokens of 2.6
characters. The same windows; calibrated on the texts that it was trained on. Rows with `a8:tensor`
have static scales in every projection but the head, and for what the selective scan reads, which
has 8 bits too.
"""


MATMUL_FREE_NOTE = """matmul_free is trained by `tests/models/export_matmul_free.py` on one core in
22 minutes: 4 layers, width 256, 3.2 million ternary weights, a token a byte. Its ONNX has the
weights as floats of three values and rounds what products read to 8 bits itself: `none` finds both
and keeps them, and differs from onnxruntime by the rounding of floats alone, which now and then
moves a code by one step. The head and the embedding are floats there, and have 8 bits in the other
row.
"""


def _chosen(model: str) -> list[Row]:
    return [row for row in ROWS if row.model == model]


def _common(row: Row, result: dict[str, Any]) -> list[str]:
    bits = "32" if result["bits"] is None else f"{result['bits']:.2f}"
    recipe = row.recipe.splitlines()[0] + (f" --budget {row.budget}" if row.budget else "")
    return [f"`{recipe}`", "yes" if row.calibrated else "", bits]


def _decoder_table(model: str, found: dict[str, dict[str, Any] | None]) -> str:
    header = ("recipe", "calibrated", "bits", "dNLL", "asked", "KL", "top-1", "compile s")
    rows = [
        (
            *_common(row, result),
            f"{result['nll_difference']:+.4f} ± {result['standard_error']:.4f}",
            row.bar,
            f"{result['kl']:.4f}",
            f"{result['agreement']:.3f}",
            f"{result['compile_seconds']:.0f}",
        )
        for row in _chosen(model)
        if (result := found[row.name]) is not None
    ]
    return markdown(header, rows)


def _peer_table(peers: list[dict[str, Any]]) -> str:
    header = ("engine", "format", "types", "bits", "dNLL", "KL", "top-1")
    rows = [
        (
            peer["engine"],
            peer["format"],
            peer["types"],
            f"{peer['bits']:.2f}",
            f"{peer['nll_difference']:+.4f} ± {peer['standard_error']:.4f}",
            f"{peer['kl']:.4f}",
            f"{peer['agreement']:.3f}",
        )
        for peer in sorted(peers, key=lambda peer: (peer["engine"], -peer["bits"]))
    ]
    return markdown(header, rows)


def _encoder_table(found: dict[str, dict[str, Any] | None]) -> str:
    header = ("recipe", "calibrated", "bits", "mean cosine", "asked", "worst")
    rows = [
        (*_common(row, result), f"{result['cosine']:.4f}", row.bar, f"{result['worst']:.4f}")
        for row in _chosen(MINILM)
        if (result := found[row.name]) is not None
    ]
    return markdown(header, rows)


def _ocr_table(found: dict[str, dict[str, Any] | None]) -> str:
    header = ("recipe", "calibrated", "bits", "noise", "error rate", "float", "asked")
    rows = [
        (*_common(row, result), str(noise), f"{actual:.4f}", f"{expected:.4f}", row.bar)
        for row in _chosen(OCR)
        if (result := found[row.name]) is not None
        for noise, expected, actual in zip(
            result["noise"], result["expected"], result["actual"], strict=True
        )
    ]
    return markdown(header, rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, and an empty line behind it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
