"""What goes into a kit: shapes, formats, models, and how much of everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import hadamard
from abqc.dialects.formats import Half, parse_scheme
from gpukit.kit import ProbeSizes


@dataclass(frozen=True)
class Format:
    """Schemes of a matmul's operands (None: floats, which kernels round to `half`), and whether its
    activations are rotated."""

    weight: str
    activation: str | None
    half: Half = "f16"
    rotated: bool = False


# What the table calls a format.
FORMATS = {
    "W4A16": Format("w4", None),
    "W8A8": Format("w8", "a8"),
    "W4A8": Format("w4", "a8"),
    "W2A8": Format("w2", "a8"),
    "W1A8": Format("w1", "a8"),
    "W4A4": Format("w4", "a4"),
    "W2A2": Format("w2", "a2"),
    "W1A1": Format("w1", "a1"),
    "W2A2-channel": Format("w2:channel", "a2"),  # one scale a column: planes by wgmma
}

# Formats that are checked and not timed: widths of several parts, zero points, bf16, rotation.
OTHERS = {
    "W3A8": Format("w3", "a8"),
    "W5A8": Format("w5", "a8"),
    "W6A16": Format("w6", None),
    "W7A8": Format("w7", "a8"),
    "W4A8-asym": Format("w4:g64:asym", "a8"),
    "W2A4-asym": Format("w2:g64:asym", "a4"),
    "W1A1-channel": Format("w1:channel", "a1"),
    "W1A4-channel": Format("w1:channel", "a4"),
    "W4A16-bf16": Format("w4", None, half="bf16"),
    "W4A8-rotated": Format("w4", "a8", rotated=True),
}


# Small models of the kernels that are no matmuls (operators.py).
OPERATORS = (
    "attention",
    "attention-80",
    "attention-160-f16",
    "norms",
    "norm-packs",
    "gated-packs",
    "embedding",
    "lines",
    "copies",
    "scatters",
)


@dataclass(frozen=True)
class AttentionPlan:
    """Heads that are timed: decoding with so many keys in caches of these formats, and prompts.
    Nothing is timed where there are no heads."""

    heads: int = 32
    group: int = 4
    head: int = 128
    keys: tuple[int, ...] = (4096, 16384)
    formats: tuple[str, ...] = ("f32", "f16", "kv8", "kv4")
    prompts: tuple[int, ...] = (2048,)


@dataclass(frozen=True)
class Plan:
    """Sizes of a kit. `shapes` are (K, N).

    `sampled`: how many schedules are drawn, for each of `sampled_formats`, `sampled_shapes` and
    `sampled_rows`, of the better third: the cost model learns from them too.
    `compared_shapes`, `compared_rows`: where copies of rows by a tensor map are measured beside
    those by threads.
    `following`: how many schedules after the predicted best are measured too, as long as there are
    fewer than `max_kernels` kernels. `wide_n` columns of the first K and `narrow_n` of every other
    are checked. `decoder_layers` 0: no decoder. `decoding`: rows of the cache and how many steps
    follow, each of which makes it grow by one.
    """

    shapes: tuple[tuple[int, int], ...] = (
        (4096, 4096),
        (4096, 11008),
        (11008, 4096),
        (8192, 8192),
        (8192, 28672),
    )
    rows: tuple[int, ...] = (1, 4, 8, 16, 64, 256, 4096)
    formats: tuple[str, ...] = tuple(FORMATS)
    others: tuple[str, ...] = tuple(OTHERS)  # checked for one row and for the most
    other_shape: tuple[int, int] = (1024, 4096)
    sampled: int = 4
    sampled_formats: tuple[str, ...] = ("W4A16", "W8A8", "W4A8")
    sampled_shapes: tuple[tuple[int, int], ...] = ((576, 1536), (1536, 576), (4096, 4096))
    sampled_rows: tuple[int, ...] = (1, 16, 128, 512)
    compared_shapes: tuple[tuple[int, int], ...] = ((4096, 4096), (8192, 28672))
    compared_rows: tuple[int, ...] = (64, 4096)
    following: int = 2
    max_kernels: int = 460
    check_rows: int = 261
    wide_n: int = 267
    narrow_n: int = 37
    turns: int = 8192
    copy_bytes: int = 3 << 29  # 1.5 GiB, far beyond L2
    probe: ProbeSizes = field(default_factory=ProbeSizes)
    wgmma: bool = True
    assembled: bool = True  # cubins where there is a ptxas, else PTX
    operators: tuple[str, ...] = OPERATORS
    attention: AttentionPlan = field(default_factory=AttentionPlan)
    minilm: bool = True
    decoder_layers: int = 3
    decoder_recipes: tuple[str, ...] = ("w4a8",)
    prompts: tuple[int, ...] = (128, 512)
    decoding: tuple[tuple[int, int], ...] = ((512, 64),)
    max_bytes: int = 60_000_000

    def spec(self, format: str, n: int, k: int) -> MatmulSpec:
        wanted = (FORMATS | OTHERS)[format]
        return MatmulSpec(
            n,
            k,
            parse_scheme(wanted.weight),
            parse_scheme(wanted.activation) if wanted.activation else None,
            hadamard_block=hadamard.block_size(k) if wanted.rotated else 0,
            half=wanted.half,
        )

    def compares(self, spec: MatmulSpec, m: int) -> bool:
        return (spec.k, spec.n) in self.compared_shapes and m in self.compared_rows

    def check_columns(self, k: int) -> int:
        return self.wide_n if k == self.shapes[0][0] else self.narrow_n
