"""The target `cpu`: x86-64, three forms of every kernel, one artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from ...costmodel.interface import CostModel, MatmulFeatures
from ...costmodel.load import model_for
from ...dialects.formats import Scheme, parse_scheme
from ..cpu.batch_matmul import batch_matmul_kernels
from ..cpu.bitplane import BitplaneStrategy
from ..cpu.dequantize import Dequantize
from ..cpu.float_matmul import FloatMatmul
from ..cpu.gather import TableLayout, table_layout
from ..cpu.gather_panels import panel_gather_kernel
from ..cpu.int8 import Int8Strategy
from ..cpu.pack_activations import measure_kernel
from ..isa import ALL, Isa
from ..objects import CpuObjects, ObjectMaker
from ..strategy import Choice, Kernel, MatmulSpec, MatmulStrategy, Variant, able_to_do

# Rows that a choice is judged by: decoding, a short prompt, a long one.
TYPICAL_ROWS = (1, 16, 128)


@dataclass(frozen=True)
class CpuTarget:
    """What passes ask a target: which strategies there are and which is best."""

    name: str = "cpu"
    max_norm_columns: int = 0  # rows of abq.norm that a kernel takes: none here
    isas: tuple[Isa, ...] = ALL
    cost_model: CostModel = field(default_factory=partial(model_for, "cpu"), repr=False)

    @property
    def cost_model_status(self) -> str:
        """What the choices rest on."""
        return self.cost_model.status

    @property
    def objects(self) -> ObjectMaker:
        """How kernels are compiled."""
        return CpuObjects(self.isas)

    @cached_property
    def strategies(self) -> tuple[MatmulStrategy, ...]:
        return (FloatMatmul(), Dequantize(), Int8Strategy(), BitplaneStrategy())

    def choose(self, specs: Sequence[MatmulSpec], *, nodes: Sequence[str]) -> list[Choice]:
        """The cheapest strategy for each; RecipeError, with its node, where there is none.

        What they cost includes their packing, which they share if they choose alike. Float
        activations are f32 here, whatever `half` says.
        """
        return [self._choose(spec, node) for spec, node in zip(specs, nodes, strict=True)]

    def _choose(self, spec: MatmulSpec, node: str) -> Choice:
        able = able_to_do(spec, self.strategies, node=node)
        if len(able) == 1:
            return Choice(able[0], spec, f"{able[0].name}: the only strategy for these formats")
        scores = {s.name: [self._features(s, spec, m) for m in TYPICAL_ROWS] for s in able}
        best = min(able, key=lambda s: self._score(scores[s.name]))
        why = "; ".join(
            f"M={m}: " + self.cost_model.explain([scores[s.name][i] for s in able])
            for i, m in enumerate(TYPICAL_ROWS)
        )
        return Choice(best, spec, why)

    def _features(self, strategy: MatmulStrategy, spec: MatmulSpec, m: int) -> MatmulFeatures:
        bits = spec.weight.bits if spec.weight else 32
        return MatmulFeatures(
            strategy=strategy.name,
            m=m,
            n=spec.n,
            k=spec.k,
            weight_bits=bits,
            activation_bits=spec.activation.bits if spec.activation else 32,
            weight_bytes=spec.n * spec.k * bits // 8,
            groups=spec.weight.n_groups(spec.k) if spec.weight else 1,
        )

    def _score(self, features: list[MatmulFeatures]) -> float:
        """The product of the times: no number of rows outweighs another."""
        score = 1.0
        for f in features:
            score *= self.cost_model.predict(f)
        return score

    def batch_matmul(self, transposed: bool) -> tuple[Variant, ...]:
        return batch_matmul_kernels(transposed)

    def measure(self, format_text: str) -> Kernel:
        """The kernel that finds one scale and zero point for each sample of an activation."""
        return measure_kernel(parse_scheme(format_text).format)

    def gather(
        self, columns: int, scheme: Scheme | None, scale_bits: int, index_bits: int
    ) -> TableLayout:
        """The layout and the kernel of a table whose rows are gathered."""
        return table_layout(columns, scheme, scale_bits=scale_bits, index_bits=index_bits)

    def panel_gather(self, strategy: str, spec: MatmulSpec) -> Kernel | None:
        """The kernel that gathers rows from a matmul's packed weight; None if there is none."""
        return panel_gather_kernel(strategy, spec)
