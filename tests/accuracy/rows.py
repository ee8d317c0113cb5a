"""The rows of the accuracy table: what is compiled, how, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass

OFFGRID, ORIGINAL = "smollm2-offgrid", "smollm2"
MINILM, OCR = "minilm-l6", "ocr-rec"
# The head and the embedding have 8 bits, as in the peers they are compared with (peer_llama.py).
HEAD = '\n"lm_head" w8a8'


@dataclass(frozen=True)
class Row:
    """One compiled model. `name` is the key of its result; `bar` is what it has to reach."""

    name: str
    model: str
    recipe: str
    calibrated: bool = False
    bar: str = ""
    budget: str = ""  # of `abqc compile --budget`


def decoder(
    name: str,
    model: str,
    recipe: str,
    calibrated: bool = False,
    bar: str = "",
    *,
    head: bool = True,
    budget: str = "",
) -> Row:
    """A row of a decoder; `head` adds the rule that rounds its head to 8 bits."""
    rule = HEAD + (" rtn" if calibrated else "")  # with data, errors would be fed back there too
    return Row(name, model, recipe + (rule if head else ""), calibrated, bar, budget)


ROWS = (
    # Weights alone matter: weights off the grid.
    decoder("float", OFFGRID, "none", bar="0", head=False),
    decoder("w8a8", OFFGRID, "w8a8"),
    decoder("w4g128-rtn", OFFGRID, "w4:g128 a8"),
    decoder("w4g128-search", OFFGRID, "w4:g128 a8 search"),
    decoder("w4g128", OFFGRID, "w4:g128 a8 gptq", True, "0.12"),
    decoder("w4g32-rtn", OFFGRID, "w4:g32 a8"),
    decoder("w4g32", OFFGRID, "w4:g32 a8 gptq", True, "better than Q4_0 and Q4_K"),
    decoder("w3g128-rtn", OFFGRID, "w3:g128 a8"),
    decoder("w3g128", OFFGRID, "w3:g128 a8 gptq", True, "0.55"),
    decoder("w3v", OFFGRID, "w3v a8 gptq", True, "better than w3:g128"),
    decoder("w2g64-rtn", OFFGRID, "w2:g64 a8"),
    decoder("w2g64", OFFGRID, "w2:g64 a8 gptq", True),
    decoder("w2v-rtn", OFFGRID, "w2v a8"),
    decoder("w2v", OFFGRID, "w2v a8 gptq", True, "1.8; half of w2:g64; better than IQ2"),
    decoder("mxfp4-rtn", OFFGRID, "mxfp4 a8"),
    decoder("mxfp4", OFFGRID, "mxfp4 a8 gptq", True, "half of rounding's loss closed"),
    decoder("nvfp4-rtn", OFFGRID, "nvfp4 a8"),
    decoder("nvfp4", OFFGRID, "nvfp4 a8 gptq", True, "half of rounding's loss closed"),
    decoder("budget-4bpw", OFFGRID, "w4 a8 gptq", True, "better than w4:g128", budget="4bpw"),
    # Activations matter: the original weights, whose outliers a random rotation would have removed.
    decoder("original-w8a8", ORIGINAL, "w8a8"),
    decoder("original-w8a8-rotate", ORIGINAL, "w8a8 rotate", bar="0.01"),
    decoder("original-w4a8-default", ORIGINAL, "w4a8", True, head=False),
    decoder("original-w4a4-rtn", ORIGINAL, "w4:channel a4"),
    decoder("original-w4a4", ORIGINAL, "w4:channel a4 rotate gptq", True, "0.8; 85 % closed"),
    *(
        decoder(f"original-kv{bits}", ORIGINAL, f"w8a8 rotate kv{bits}", bar=bar)
        for bits, bar in ((8, ""), (4, "0.05 above w8a8 rotate"))
    ),
    # Sentences: mean cosine to the float model's embedding.
    Row("minilm-w8a8", MINILM, "w8a8"),
    Row("minilm-w4a8-rtn", MINILM, "w4a8"),
    Row("minilm-w4a8", MINILM, "w4a8 gptq", True, "0.99"),
    Row("minilm-w4a4-rtn", MINILM, "w4a4"),
    Row("minilm-w4a4", MINILM, "w4a4 rotate gptq", True, "0.965"),
    Row("minilm-w2v", MINILM, "w2v a8 gptq", True, "0.93"),
    # Lines of text: character error rate above float.
    Row("ocr-w8a8", OCR, "w8a8"),
    Row("ocr-w8a8-static", OCR, "w8 a8:tensor", True, "0.002 above float"),
    Row("ocr-w4a8-rtn", OCR, "w4a8"),
    Row("ocr-w4a8", OCR, "w4a8 gptq", True, "0.005 above float"),
)
