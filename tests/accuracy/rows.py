"""The rows of the accuracy table: what is compiled, how, and what is asked of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

OFFGRID, ORIGINAL = "smollm2-offgrid", "smollm2"
MINILM, OCR = "minilm-l6", "ocr-rec"
MAMBA = "mamba"
MATMUL_FREE = "matmul_free"
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

    @property
    def made_of(self) -> dict[str, Any]:
        """What a result depends on; a budget that is not given is not named."""
        known = {key: value for key, value in asdict(self).items() if key not in ("name", "bar")}
        return known if self.budget else {key: known[key] for key in known if key != "budget"}


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
    decoder("w3v", OFFGRID, "w3v a8 rotate gptq", True, "better than w3:g128"),
    decoder("w4v", OFFGRID, "w4v a8 rotate gptq", True),
    decoder("w2g64-rtn", OFFGRID, "w2:g64 a8"),
    decoder("w2g64", OFFGRID, "w2:g64 a8 gptq", True),
    decoder("w2v-rtn", OFFGRID, "w2v a8"),
    decoder("w2v", OFFGRID, "w2v a8 rotate gptq", True, "1.8; half of w2:g64; better than IQ2"),
    decoder("mxfp4-rtn", OFFGRID, "mxfp4 a8"),
    decoder("mxfp4", OFFGRID, "mxfp4 a8 gptq", True, "half of rounding's loss closed"),
    decoder("nvfp4-rtn", OFFGRID, "nvfp4 a8"),
    decoder("nvfp4", OFFGRID, "nvfp4 a8 gptq", True, "half of rounding's loss closed"),
    decoder(
        "budget-4bpw",
        OFFGRID,
        "w4 a8 rotate gptq",
        True,
        "better than one format of the size",
        budget="4bpw",
    ),
    decoder(  # the size of w4v for all
        "budget-4.03bpw",
        OFFGRID,
        "w4 a8 rotate gptq",
        True,
        "better than w4v",
        budget="4.03bpw",
    ),
    decoder(
        "budget-3bpw",
        OFFGRID,
        "w4 a8 rotate gptq",
        True,
        "better than one format of the size",
        budget="3bpw",
    ),
    # Activations matter: the original weights, whose outliers a random rotation would have removed.
    decoder("original-w8a8", ORIGINAL, "w8a8"),
    decoder("original-w8a8-embed6", ORIGINAL, "w8a8 embed=w6", head=False),
    decoder("original-w8a8-embed6g64", ORIGINAL, "w8a8 embed=w6:g64", head=False),
    decoder("original-w8a8-rotate", ORIGINAL, "w8a8 rotate", bar="0.01"),
    decoder("original-w4a8-default", ORIGINAL, "w4a8", True, head=False),
    decoder("original-w4a8-balance", ORIGINAL, "w4a8 balance gptq", True, head=False),
    decoder("original-w4a8-rotate", ORIGINAL, "w4a8 rotate gptq", True, head=False),
    decoder("original-w4a4-rtn", ORIGINAL, "w4:channel a4"),
    decoder(
        "original-w4a4", ORIGINAL, "w4:channel a4 rotate shift clip gptq", True, "0.8; 85 % closed"
    ),
    # Caches alone.
    *(
        decoder(word.replace(":", "-"), ORIGINAL, word, bar=bar, head=False)
        for word, bar in (
            ("kv8", ""),
            ("kv4", "0.05"),
            ("kv4:plain", ""),
            *((f"kv-bfp{bits}:plain", "") for bits in (8, 6, 5, 4)),
            *((f"kv-bfp{bits}:sort", "a third of the loss recovered") for bits in (8, 6, 5, 4)),
            *((f"kv-bfp{bits}", "") for bits in (6, 5, 4)),
        )
    ),
    # A state space model: static activations, the selective scan's among them (Quamba).
    decoder("mamba-w8a8", MAMBA, "w8a8"),
    decoder("mamba-static-minmax", MAMBA, "w8 a8:tensor minmax gptq", True),
    decoder("mamba-static-percentile", MAMBA, "w8 a8:tensor percentile gptq", True),
    decoder("mamba-static", MAMBA, "w8 a8:tensor gptq", True),
    decoder("mamba-static-minmax-rotate", MAMBA, "w8 a8:tensor minmax rotate gptq", True),
    decoder(
        "mamba-static-percentile-rotate",
        MAMBA,
        "w8 a8:tensor percentile rotate gptq",
        True,
        "0.03; better than minmax alone",
    ),
    decoder("mamba-static-rotate", MAMBA, "w8 a8:tensor rotate gptq", True),
    # Ternary weights, and rows that the model rounds itself: both are kept.
    decoder("matmul-free", MATMUL_FREE, "none", bar="0: kept exactly", head=False),
    decoder("matmul-free-t5", MATMUL_FREE, "wt5a8"),
    # Sentences: mean cosine to the float model's embedding.
    Row("minilm-w8a8", MINILM, "w8a8"),
    Row("minilm-w4a8-rtn", MINILM, "w4a8"),
    Row("minilm-w4a8", MINILM, "w4a8 gptq", True, "0.99"),
    Row("minilm-w4a8-rotate", MINILM, "w4a8 rotate gptq", True, "0.99"),
    Row("minilm-w4a4-rtn", MINILM, "w4a4"),
    Row("minilm-w4a4", MINILM, "w4a4 rotate shift clip gptq", True, "0.965"),
    Row("minilm-w2v", MINILM, "w2v a8 rotate gptq", True, "0.93"),
    # Lines of text: character error rate above float.
    Row("ocr-w8a8", OCR, "w8a8"),
    Row("ocr-w8a8-static", OCR, "w8 a8:tensor", True, "0.002 above float"),
    Row("ocr-w8a8-integer", OCR, "w8 a8:tensor integer", True, "0.002 above float"),
    Row("ocr-w4a8-rtn", OCR, "w4a8"),
    Row("ocr-w4a8", OCR, "w4a8 gptq", True, "0.005 above float"),
    Row("ocr-w4a8-default", OCR, "w4a8", True, "0.005 above float"),
)
