"""Train a small Mamba language model on public texts and export it to ONNX.

    python tests/models/export_mamba.py OUT_DIR [--steps 750] [--check]

writes OUT_DIR/model.onnx, tokenizer.json and weights.pt; where weights.pt is there already it is
exported without training. No part of the tests' fast path:

    pip install torch==2.13.0 onnxscript tokenizers transformers

It learns from `jargon` and `python` of accuracy/texts.py, whose last paragraphs are kept for
validation; the accuracy table measures it on `handbook`. The architecture and the parameters' names
are those of transformers' MambaForCausalLM (Gu and Dao 2023, arXiv 2312.00752): `--check` compares
the two.
The recurrence is torch's `scan`, which is exported as ONNX Scan, so that batch and sequence are
dynamic:

    input_ids  int64 [batch, seq]  ->  logits  f32 [batch, seq, vocab]
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy.texts import fetch_text

TRAINED_ON = ("jargon", "python")
VALIDATED = 0.02  # of each text, its end
WINDOW = 256  # tokens
BATCH = 4
PEAK_RATE = 4e-3
WARM_UP = 50  # steps


@dataclass(frozen=True)
class Config:
    """The sizes of a Mamba language model; `width` is that of the residual stream."""

    vocab: int = 1024
    width: int = 192
    layers: int = 4
    state: int = 16
    kernel: int = 4  # of the causal convolution
    rank: int = 12  # of the step sizes
    epsilon: float = 1e-5

    @property
    def inner(self) -> int:
        return 2 * self.width


class SelectiveScan(torch.autograd.Function):
    """The outputs [B, T, D] of the recurrence h = decay h + drive, y = h . c, with its gradients.

    decay and drive are [T, B, D, N], c is [T, B, N]. The states are kept, nothing else.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, c: Tensor) -> Tensor:
        states = drive.clone()
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        ctx.save_for_backward(decay, states, c)
        return (states @ c.unsqueeze(-1)).squeeze(-1).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, c = ctx.saved_tensors
        dy = gradients[0].transpose(0, 1)
        dc = (dy.unsqueeze(2) @ states).squeeze(2)
        ddrive = dy.unsqueeze(-1) * c.unsqueeze(2)
        for t in range(len(states) - 2, -1, -1):
            ddrive[t].addcmul_(decay[t + 1], ddrive[t + 1])
        ddecay = torch.zeros_like(decay)
        torch.mul(ddrive[1:], states[:-1], out=ddecay[1:])
        return ddecay, ddrive, dc


def _step(h: Tensor, given: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, Tensor]:
    """One step: the state [B, D, N] and y [B, D], from delta and x [B, D], b and c [B, N]."""
    delta, x, b, c = given
    h = torch.exp(delta[:, :, None] * a) * h + (delta * x)[:, :, None] * b[:, None, :]
    return h, (h * c[:, None, :]).sum(-1)


class Mixer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.exported = False
        self.in_proj = nn.Linear(c.width, 2 * c.inner, bias=False)
        self.conv1d = nn.Conv1d(c.inner, c.inner, c.kernel, groups=c.inner, padding=c.kernel - 1)
        self.x_proj = nn.Linear(c.inner, c.rank + 2 * c.state, bias=False)
        self.dt_proj = nn.Linear(c.rank, c.inner)
        self.A_log = nn.Parameter(torch.arange(1, c.state + 1.0).log().repeat(c.inner, 1))
        self.D = nn.Parameter(torch.ones(c.inner))
        self.out_proj = nn.Linear(c.inner, c.width, bias=False)
        # Steps of 0.001 to 0.1, as the paper begins.
        steps = torch.exp(torch.rand(c.inner) * math.log(100.0) + math.log(0.001))
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
            self.dt_proj.weight.uniform_(-(c.rank**-0.5), c.rank**-0.5)
            self.out_proj.weight /= math.sqrt(2 * c.layers)

    def forward(self, u: Tensor) -> Tensor:
        c = self.c
        x, gate = self.in_proj(u).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[:, :, : u.shape[1]]).transpose(1, 2)
        rank, b, out = self.x_proj(x).split([c.rank, c.state, c.state], dim=-1)
        delta = F.softplus(self.dt_proj(rank))
        y = self._scan(x, delta, -torch.exp(self.A_log), b, out) + x * self.D
        return self.out_proj(y * F.silu(gate))

    def _scan(self, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        delta, x, b, c = (v.transpose(0, 1) for v in (delta, x, b, c))
        if not self.exported:
            decay = torch.exp(delta.unsqueeze(-1) * a)
            return SelectiveScan.apply(decay, (delta * x).unsqueeze(-1) * b.unsqueeze(2), c)
        h = torch.zeros(x.shape[1], self.c.inner, self.c.state)
        _, y = scan(lambda h, given: _step(h, given, a), h, (delta, x, b, c))
        return y.transpose(0, 1)


class RMSNorm(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.width))
        self.epsilon = c.epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.epsilon))


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.norm = RMSNorm(c)
        self.mixer = Mixer(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(c.vocab, c.width)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm_f = RMSNorm(c)
        nn.init.normal_(self.embeddings.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class Mamba(nn.Module):
    """The language model; its head is tied to its embedding."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.backbone = Backbone(c)
        self.lm_head = nn.Linear(c.width, c.vocab, bias=False)
        self.lm_head.weight = self.backbone.embeddings.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.backbone(input_ids))


def make_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE of `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_texts() -> tuple[str, str]:
    """What is trained on, its paragraphs in a random order, and what is validated on."""
    trained: list[str] = []
    validated: list[str] = []
    for name in TRAINED_ON:
        paragraphs = fetch_text(name).read_text("utf-8").split("\n\n")
        kept = int(len(paragraphs) * (1 - VALIDATED))
        trained += paragraphs[:kept]
        validated += paragraphs[kept:]
    random.Random(0).shuffle(trained)
    return "\n\n".join(trained), "\n\n".join(validated)


def windows(ids: Tensor, length: int) -> Tensor:
    """Consecutive windows [count, length + 1], each with the token behind it."""
    count = (len(ids) - 1) // length
    return torch.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])


def loss_of(model: Mamba, batch: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats a token."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def rate_at(step: int, steps: int) -> float:
    """The learning rate: a linear rise, then a cosine to a twentieth."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    part = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))


def train(model: Mamba, data: Tensor, steps: int, progress: float) -> None:
    """AdamW over windows in a random order; prints every `progress` seconds."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    order = torch.cat([torch.randperm(len(data)) for _ in range(1 + steps * BATCH // len(data))])
    told = began = time.perf_counter()
    mean = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        loss = loss_of(model, data[order[step * BATCH : (step + 1) * BATCH]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = 0.95 * mean + 0.05 * loss.item() if step else loss.item()
        if time.perf_counter() - told > progress:
            told = time.perf_counter()
            print(f"step {step + 1} of {steps}, {told - began:.0f} s: {mean:.3f}", flush=True)


def validate(model: Mamba, data: Tensor) -> float:
    with torch.no_grad():
        losses = [loss_of(model, part).item() * len(part) for part in data.split(BATCH)]
    return sum(losses) / len(data)


def export(model: Mamba, path: Path) -> None:
    """Write `model` to `path`; projections are named by their modules."""
    for layer in model.backbone.layers:
        layer.mixer.exported = True
    model.requires_grad_(False)  # a scan that has gradients cannot be exported
    dim = torch.export.Dim
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 7, dtype=torch.int64),),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes=({0: dim("batch"), 1: dim("seq")},),
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    name_nodes(program.model.graph)
    program.save(path, external_data=False)


def name_nodes(graph: ir.Graph) -> None:
    """Name every product by its module, as in `layers.0.mixer.in_proj`, and drop the traces."""
    for node in graph:
        scopes = literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        scope = next((s for s in reversed(scopes[:-1]) if s), "").removeprefix("backbone.")
        if node.op_type in ("MatMul", "Gemm", "Conv", "Gather") and scope:
            node.name = scope
        elif scope:
            node.name = f"{scope}/{node.name}"
        node.metadata_props.clear()


def check(model: Mamba) -> float:
    """Largest difference of logits between transformers' model and ours, of their range."""
    from transformers import MambaConfig, MambaForCausalLM

    c = model.c
    config = MambaConfig(
        vocab_size=c.vocab, hidden_size=c.width, num_hidden_layers=c.layers, state_size=c.state,
        conv_kernel=c.kernel, time_step_rank=c.rank, layer_norm_epsilon=c.epsilon,
    )  # fmt: skip
    reference = MambaForCausalLM(config).eval()
    reference.load_state_dict(model.state_dict())
    ids = torch.randint(0, c.vocab, (2, 24))
    with torch.no_grad():
        expected, actual = reference(ids).logits, model(ids)
    return float((expected - actual).abs().max() / (expected.max() - expected.min()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--progress", type=float, default=20.0, help="seconds between reports")
    parser.add_argument("--check", action="store_true", help="compare with transformers' model")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = Config()
    trained, validated = read_texts()
    tokenizer = make_tokenizer(trained.split("\n\n"), config.vocab)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out_dir / "tokenizer.json"))
    model, weights = Mamba(config), args.out_dir / "weights.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights))
    else:
        data = windows(torch.tensor(tokenizer.encode(trained).ids), WINDOW)
        print(f"{sum(p.numel() for p in model.parameters())} weights, {data.numel()} tokens")
        train(model, data, args.steps, args.progress)
        torch.save(model.state_dict(), weights)
    held_out = windows(torch.tensor(tokenizer.encode(validated).ids), WINDOW)
    print(f"validation: {validate(model, held_out):.3f} nats a token")
    if args.check:
        print(f"largest difference to transformers, of the range: {check(model):.2e}")
    export(model, args.out_dir / "model.onnx")


if __name__ == "__main__":
    main()
