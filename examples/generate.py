"""Streams text from a compiled language model: the loop behind `abqc generate`.

    abqc compile smollm2/model.onnx --quant w8a8            # writes smollm2/model.so
    python examples/generate.py smollm2/model.so "The capital of France is"

The model's tokenizer.json stands beside the library; it is read by the package `tokenizers`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import abqc
from abqc.compiler.generation.detokenizer import Detokenizer
from abqc.runtime.decoder import Decoder
from abqc.runtime.sampling import Sampler
from tokenizers import Tokenizer


def generate(library: Path, prompt: str, max_tokens: int = 64) -> None:
    """Print what the model goes on with, token by token."""
    tokenizer = Tokenizer.from_file(str(library.with_name("tokenizer.json")))
    decoder = Decoder(abqc.load(library))  # keeps the caches, in place
    sampler = Sampler()  # greedy; Sampler(temperature=0.8, top_p=0.95, seed=7) draws
    new = tokenizer.encode(prompt).ids
    detokenizer = Detokenizer(tokenizer, new)  # holds back incomplete characters
    for _ in range(max_tokens):
        token = sampler(decoder.step(new))  # logits of the next token
        print(detokenizer.add(token), end="", flush=True)
        new = [token]
    print(detokenizer.rest())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} model.so PROMPT")
    generate(Path(sys.argv[1]), sys.argv[2])
