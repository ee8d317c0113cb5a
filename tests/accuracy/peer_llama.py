"""What llama.cpp reaches on the weights and windows of the accuracy table.

    python tests/accuracy/peer_llama.py                # every format that has no result yet
    python tests/accuracy/peer_llama.py Q4_0 IQ2_S --again

The stream's 576 elements are no multiple of 256, so that K- and I-quants fall back to other types
for most products. What they would do is seen in the formats `... padded`: the same model with a
stream of 768, the rest zeros (make_gguf.py); their bits are those of the type, as if there were no
padding.

Needs the packages gguf and llama-cpp-python (its source package builds llama.cpp) and, from the
same sources, llama-quantize and llama-imatrix: LLAMA_CPP_BIN names their folder. Weights are those
of smollm2-offgrid in f32 (make_gguf.py); the importance matrix is of all windows of
which our own rows take the first; embedding and head become Q8_0. The logits of each window come
through the bindings, all tokens of it in one batch with an empty cache.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from abqc.runtime.tensor_spec import TensorSpec
from accuracy import make_gguf, make_models, page, results
from accuracy.make_tokens import CALIBRATED, WINDOW, load_tokenizer
from accuracy.subjects import decoder_windows, measure_decoder
from accuracy.texts import folder
from models.fetch import Unavailable

FORMATS = (
    *("Q4_0", "Q4_K_M", "IQ2_S", "IQ2_M", "IQ2_S padded", "Q2_0", "IQ2_M padded", "Q4_K_S padded"),
    *("Q3_K_M", "IQ3_S padded", "Q3_K_S padded", "Q2_K padded", "IQ4_NL", "Q8_0", "F32"),
)
PADDED = " padded"
THREADS = 1  # its threads spin at barriers, which is expensive where cores are shared
EMBEDDINGS = ("token_embd.weight", "output.weight")


class LlamaModel:
    """A GGUF file with the interface of a compiled model: `input_ids` in, `logits` out."""

    inputs = (TensorSpec("input_ids", "int64", (1, WINDOW)),)
    outputs = (TensorSpec("logits", "float32", (1, WINDOW, "vocabulary")),)

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise Unavailable(f"the package llama-cpp-python is missing: {error}") from error
        self.path = path
        self.api: Any = llama_cpp
        self.log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = WINDOW
        settings.n_threads = settings.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise Unavailable(f"llama.cpp does not load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Logits f32 [1, tokens, vocabulary] of `input_ids` [1, tokens]."""
        api, ids = self.api, feeds["input_ids"][0]
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        batch = api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = int(token), i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        code = api.llama_decode(self.context, batch)
        api.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        pointer = api.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(pointer, (len(ids), self.vocabulary)).copy()
        return [logits[None]]

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


@dataclass(frozen=True)
class Storage:
    """How a GGUF file stores the products but the head: types by weights, bits a weight."""

    types: str
    bits: float

    @staticmethod
    def of(path: Path) -> Storage:
        """Of all matrices but embedding and head, padding counted as weights."""
        import gguf

        weights: Counter[str] = Counter()
        size = 0
        try:
            tensors = gguf.GGUFReader(path).tensors
        except ValueError as error:  # a type that is newer than the package
            raise Unavailable(
                f"the package gguf does not know {path.name}: {error}; the sources of "
                "llama.cpp have theirs in gguf-py"
            ) from error
        for tensor in tensors:
            if len(tensor.shape) == 2 and tensor.name not in EMBEDDINGS:
                weights[tensor.tensor_type.name] += int(np.prod(tensor.shape))
                size += int(tensor.n_bytes)
        listed = ", ".join(f"{name} {count / 1e6:.0f} M" for name, count in weights.most_common())
        return Storage(listed, 8 * size / sum(weights.values()))


def tool(name: str) -> str:
    directory = os.environ.get("LLAMA_CPP_BIN")
    path = Path(directory or "") / name
    if not directory or not path.is_file():
        raise Unavailable(f"LLAMA_CPP_BIN names no folder with {name}")
    return str(path)


def run_tool(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"{command[0]} failed: {(done.stderr or done.stdout)[-400:]}")


def float_file(onnx: Path, padded: bool = False) -> Path:
    path = folder() / "llama" / ("f32-padded.gguf" if padded else "f32.gguf")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_gguf.write(onnx, path, padded=padded)
    return path


def importance_file(onnx: Path, padded: bool) -> Path:
    """The importance matrix of the text of the calibration windows."""
    path = folder() / "llama" / "imatrix.gguf"
    if not path.exists():
        _make_importance(onnx, path)
    if not padded:
        return path
    wide = path.with_name("imatrix-padded.gguf")
    if not wide.exists():
        make_gguf.write_padded_importance(path, wide)
    return wide


def _make_importance(onnx: Path, path: Path) -> None:
    with np.load(decoder_windows(onnx)) as data:
        windows = data["input_ids"]
    tokenizer: Any = load_tokenizer(onnx.with_name("tokenizer.json"))
    text = path.with_suffix(".txt")
    text.write_text("".join(tokenizer.decode(list(w)) for w in windows), encoding="utf-8")
    made = path.with_name("imatrix.tmp.gguf")
    run_tool(
        *(tool("llama-imatrix"), "-m", float_file(onnx), "-f", text, "-o", made, "-t", THREADS),
        *("-c", WINDOW, "--chunks", CALIBRATED, "--no-ppl"),
    )
    made.replace(path)


def quantized_file(onnx: Path, kind: str, padded: bool) -> Path:
    if kind == "F32":
        return float_file(onnx, padded)
    path = folder() / "llama" / f"{kind}.gguf"
    run_tool(
        *(tool("llama-quantize"), "--imatrix", importance_file(onnx, padded)),
        *("--output-tensor-type", "q8_0", "--token-embedding-type", "q8_0"),
        *(float_file(onnx, padded), path, kind, THREADS),
    )
    return path


def measure(name: str) -> dict[str, Any]:
    onnx = make_models.offgrid()
    padded = name.endswith(PADDED)
    path = quantized_file(onnx, name.removesuffix(PADDED), padded)
    storage = Storage.of(path)
    model = LlamaModel(path)
    try:
        figures = measure_decoder(onnx, model)
    finally:
        model.close()
    about = {"engine": "llama.cpp", "format": name, "types": storage.types, "bits": storage.bits}
    if path != float_file(onnx, padded):
        path.unlink()
    return results.save(key(name), made_of(name), about | figures)


def key(name: str) -> str:
    return f"peer-llama-{name.replace(' ', '-')}"


def made_of(kind: str) -> dict[str, Any]:
    return {"engine": "llama.cpp", "format": kind}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("formats", nargs="*", default=FORMATS, help=f"default: {FORMATS}")
    parser.add_argument("--again", action="store_true", help="formats that have a result too")
    args = parser.parse_args()
    for kind in args.formats:
        try:
            result = None if args.again else results.load(key(kind), made_of(kind))
            result = result or measure(kind)
            print(f"{kind}: {result['types']}: {page.summary(result)}", flush=True)
        except Unavailable as error:
            print(f"{kind}: {error}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
