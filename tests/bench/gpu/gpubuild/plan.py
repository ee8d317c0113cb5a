"""What goes into a kit: shapes, formats, models, and how much of everything."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme

# Weight and activation schemes of what the table calls a format.
FORMATS: dict[str, tuple[str, str | None]] = {
    "W4A16": ("w4", None),
    "W8A8": ("w8", "a8"),
    "W4A8": ("w4", "a8"),
    "W2A8": ("w2", "a8"),
    "W1A8": ("w1", "a8"),
    "W4A4": ("w4", "a4"),
    "W2A2": ("w2", "a2"),
    "W1A1": ("w1", "a1"),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of a kit. `shapes` are (K, N).

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
    following: int = 2
    max_kernels: int = 460
    check_rows: int = 261
    wide_n: int = 267
    narrow_n: int = 37
    turns: int = 8192
    wgmma: bool = True
    assembled: bool = True  # cubins where there is a ptxas, else PTX
    minilm: bool = True
    decoder_layers: int = 4
    decoder_recipes: tuple[str, ...] = ("w4a8", "w2a8")
    prompts: tuple[int, ...] = (128, 512)
    decoding: tuple[tuple[int, int], ...] = ((512, 64),)
    max_bytes: int = 60_000_000

    def spec(self, format: str, n: int, k: int) -> MatmulSpec:
        weight, activation = FORMATS[format]
        scheme = parse_scheme(activation) if activation else None
        return MatmulSpec(n, k, parse_scheme(weight), scheme)

    def check_columns(self, k: int) -> int:
        return self.wide_n if k == self.shapes[0][0] else self.narrow_n
