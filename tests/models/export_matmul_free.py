"""Train a small MatMul-free language model on a public text and export it to ONNX.

    python tests/models/export_matmul_free.py OUT_DIR [--steps N]

trains for some minutes on one core and writes OUT_DIR/matmul_free.pt and four models that compute
the same function but for rounding. No part of the tests' fast path; it needs torch==2.13.0 and
onnxscript, and the texts of accuracy/texts.py.

    model.onnx             weights are f32 constants of three values, activations are rounded
    float_activations.onnx the same weights; activations stay float
    graph.onnx             weights rounded in the graph, by operations on the latent f32 weights
    training.onnx          as `graph`, straight-through estimators left in: x + (round(x) - x)

The architecture is that of Zhu et al., "Scalable MatMul-free Language Modeling" (arXiv 2406.02528):
products with ternary weights (`BitLinear`, after BitNet b1.58, arXiv 2402.17764), a gated linear
recurrence (MLGRU) that mixes tokens and a gated linear unit that mixes channels. Tokens are the
bytes of UTF-8.

    input_ids int64 [batch, seq]  ->  logits f32 [batch, seq, 256]
"""

from __future__ import annotations

import argparse
import sys
import time
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy.texts import fetch_text

BYTES = 256
WINDOW = 256  # bytes of a sample in training
BATCH = 16
LEARNING_RATE = 4e-3
WARM_UP = 50  # steps
TRAINING_TEXTS = ("jargon", "python")
EVALUATED = "handbook"
EVALUATED_WINDOWS = 40
EVALUATED_BYTES = 512

EPSILON = 1e-5  # of norms, and the least range that rounding divides by
LARGEST = 127.0  # code of an activation


@dataclass(frozen=True)
class Config:
    """The sizes of the model."""

    layers: int = 4
    hidden: int = 256
    intermediate: int = 704


@dataclass
class Form:
    """What of the training graph is exported, shared by all `BitLinear`."""

    straight_through: bool = True
    rounds_weights: bool = True
    rounds_activations: bool = True


def round_rows(x: Tensor) -> Tensor:
    """Each row to 8 bits, by its largest magnitude."""
    scale = LARGEST / x.abs().amax(-1, keepdim=True).clamp(min=EPSILON)
    return (x * scale).round().clamp(-LARGEST - 1, LARGEST) / scale


def round_ternary(w: Tensor) -> Tensor:
    """To -s, 0 and s, with s the mean magnitude."""
    scale = 1.0 / w.abs().mean().clamp(min=EPSILON)
    return (w * scale).round().clamp(-1, 1) / scale


class RMSNorm(nn.Module):
    """Without gains."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPSILON)


class BitLinear(nn.Linear):
    """A product of normalized rows of 8 bits with ternary weights; gradients pass rounding."""

    def __init__(self, inputs: int, outputs: int, form: Form) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.form = form
        self.norm = RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x, w, form = self.norm(x), self.weight, self.form
        if form.rounds_activations:
            x = self.estimate(x, round_rows(x))
        if form.rounds_weights:
            w = self.estimate(w, round_ternary(w))
        return nn.functional.linear(x, w)

    def estimate(self, value: Tensor, rounded: Tensor) -> Tensor:
        """The rounded value, with the gradient of the value itself."""
        return value + (rounded - value).detach() if self.form.straight_through else rounded


def recurrence(decay: Tensor, update: Tensor) -> Tensor:
    """h[t] = decay[t] * h[t - 1] + update[t] along axis 1 of [batch, seq, hidden], from zeros."""

    def step(h: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = inputs[0] * h + inputs[1]
        return h, h.clone()

    start = torch.zeros_like(update[:, 0])
    _, states = scan(step, start, (decay.transpose(0, 1), update.transpose(0, 1)))
    return states.transpose(0, 1)


def parallel_recurrence(decay: Tensor, update: Tensor) -> Tensor:
    """The same in log2(seq) steps (Hillis and Steele 1986), for training."""
    reach = 1
    while reach < decay.shape[1]:
        before = nn.functional.pad(update[:, :-reach], (0, 0, reach, 0))
        update = update + decay * before
        decay = decay * nn.functional.pad(decay[:, :-reach], (0, 0, reach, 0), value=1.0)
        reach *= 2
    return update


class TokenMixer(nn.Module):
    """MLGRU: forget gate, candidate and output gate depend on the input alone."""

    def __init__(self, c: Config, form: Form) -> None:
        super().__init__()
        self.forget_proj = BitLinear(c.hidden, c.hidden, form)
        self.candidate_proj = BitLinear(c.hidden, c.hidden, form)
        self.gate_proj = BitLinear(c.hidden, c.hidden, form)
        self.out_proj = BitLinear(c.hidden, c.hidden, form)

    def forward(self, x: Tensor) -> Tensor:
        forget = torch.sigmoid(self.forget_proj(x))
        update = (1 - forget) * nn.functional.silu(self.candidate_proj(x))
        mix = parallel_recurrence if self.training else recurrence
        return self.out_proj(mix(forget, update) * torch.sigmoid(self.gate_proj(x)))


class ChannelMixer(nn.Module):
    """A gated linear unit."""

    def __init__(self, c: Config, form: Form) -> None:
        super().__init__()
        self.gate_proj = BitLinear(c.hidden, c.intermediate, form)
        self.up_proj = BitLinear(c.hidden, c.intermediate, form)
        self.down_proj = BitLinear(c.intermediate, c.hidden, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class MatMulFree(nn.Module):
    """The embedding and the head stay float, as in the paper."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.form = Form()
        self.embed_tokens = nn.Embedding(BYTES, c.hidden)
        self.tokens = nn.ModuleList(TokenMixer(c, self.form) for _ in range(c.layers))
        self.channels = nn.ModuleList(ChannelMixer(c, self.form) for _ in range(c.layers))
        self.norm = RMSNorm()
        self.lm_head = nn.Linear(c.hidden, BYTES, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + tokens(x)
            x = x + channels(x)
        return self.lm_head(self.norm(x))


def encoded(name: str) -> Tensor:
    """The bytes of a text, int64."""
    return torch.from_numpy(np.frombuffer(fetch_text(name).read_bytes(), np.uint8).astype(np.int64))


def loss_of(model: MatMulFree, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood of a byte, in nats; windows are [batch, bytes]."""
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.reshape(-1, BYTES), windows[:, 1:].reshape(-1))


def train(model: MatMulFree, data: Tensor, steps: int) -> None:
    """Adam with a warm-up and a cosine; random windows of `data`."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(1, (i + 1) / WARM_UP) * (1 + float(np.cos(np.pi * i / steps))) / 2,
    )
    model.train()
    started = time.perf_counter()
    for step in range(steps):
        begins = torch.randint(0, len(data) - WINDOW - 1, (BATCH, 1))
        loss = loss_of(model, data[begins + torch.arange(WINDOW + 1)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            print(f"step {step} of {steps}, {seconds:.0f} s: {loss.item():.3f}", flush=True)
    model.eval()


def evaluate(model: MatMulFree) -> float:
    """Nats a byte on windows spread over the evaluated text."""
    data = encoded(EVALUATED)
    begins = torch.linspace(0, len(data) - EVALUATED_BYTES - 1, EVALUATED_WINDOWS).long()
    model.train()  # for the parallel recurrence; nothing else differs
    with torch.no_grad():
        losses = [loss_of(model, data[b : b + EVALUATED_BYTES + 1][None]).item() for b in begins]
    model.eval()
    return float(np.mean(losses))


def export(model: MatMulFree, path: Path) -> None:
    """Write `model` in its form to `path`, of dynamic batch and length."""
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq")
    program = torch.onnx.export(
        model.eval(),
        (torch.randint(0, BYTES, (2, 5)),),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes=({0: batch, 1: seq},),
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        scopes = literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        scope = next((s for s in reversed(scopes[:-1]) if s), "")
        if node.op_type == "MatMul":
            node.name = scope
        elif scope:
            node.name = f"{scope}/{node.name}"
        node.metadata_props.clear()
    program.save(path, external_data=False)


def export_forms(model: MatMulFree, out_dir: Path) -> None:
    """The four models of the module's docstring."""
    form = model.form
    export(model, out_dir / "training.onnx")
    form.straight_through = False
    export(model, out_dir / "graph.onnx")
    form.rounds_weights = False
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BitLinear):
                module.weight.copy_(round_ternary(module.weight))
    export(model, out_dir / "model.onnx")
    form.rounds_activations = False
    export(model, out_dir / "float_activations.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--export-only", action="store_true", help="of OUT_DIR/matmul_free.pt")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = MatMulFree(Config())
    checkpoint = args.out_dir / "matmul_free.pt"
    if args.export_only:
        model.load_state_dict(torch.load(checkpoint))
    else:
        train(model, torch.cat([encoded(name) for name in TRAINING_TEXTS]), args.steps)
        torch.save(model.state_dict(), checkpoint)
    print(f"{EVALUATED}: {evaluate(model):.4f} nats a byte")
    export_forms(model, args.out_dir)


if __name__ == "__main__":
    main()
