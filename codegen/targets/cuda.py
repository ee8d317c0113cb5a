"""The targets `sm_75` to `sm_120a` and `cuda`: NVIDIA GPUs, one artifact for one or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...costmodel.interface import CostModel
from ...costmodel.load import model_for
from ...dialects.formats import Scheme, parse_scheme
from ..gpu.arch import ALL, SM_75, GpuArch
from ..gpu.attention import AttentionVariant, attention_kernels, precision_on
from ..gpu.attention_spec import AttentionSpec, MaskKind
from ..gpu.batch_matmul import batch_matmul_kernels
from ..gpu.dequantize import DequantizeMatmul
from ..gpu.float_matmul import FloatMatmul
from ..gpu.gather import TableLayout, table_layout
from ..gpu.gather_tiles import panel_gather_kernel
from ..gpu.int8 import Int8Matmul
from ..gpu.measure import measure_kernel
from ..gpu.norm import NormKind, NormSpec, norm_kernel, softmax_kernel
from ..gpu.objects import GpuObjects
from ..gpu.planes import Planes
from ..gpu.strategy import GpuStrategy, Scheduled
from ..objects import ObjectMaker
from ..strategy import Choice, Kernel, MatmulSpec, Variant, able_to_do

# Rows that a choice is judged by: decoding, a small batch, a prompt.
TYPICAL_ROWS = (1, 16, 512)

CUDA = "cuda"  # all that share the kernels of sm_80


@dataclass(frozen=True)
class CudaTarget:
    """What passes ask a target: which strategies there are and which is best on all its GPUs."""

    name: str
    archs: tuple[GpuArch, ...]
    models: tuple[CostModel, ...] = field(repr=False)

    @staticmethod
    def named(name: str) -> CudaTarget | None:
        """The target of `sm_90a`, `sm_80,sm_90a` or `cuda`; None where a part is no GPU."""
        known = {arch.name: arch for arch in ALL}
        if name == CUDA:
            archs = [arch for arch in ALL if arch != SM_75]
        else:
            parts = [part.strip() for part in name.split(",")]
            if not all(part in known for part in parts):
                return None
            archs = [arch for arch in ALL if arch.name in parts]
        return CudaTarget(name, tuple(archs), tuple(model_for(arch.name) for arch in archs))

    @property
    def cost_model_status(self) -> str:
        """What the choices rest on."""
        statuses = dict.fromkeys(model.status for model in self.models)
        return "; ".join(statuses)

    @property
    def objects(self) -> ObjectMaker:
        """How kernels are compiled."""
        return GpuObjects(self.archs)

    @cached_property
    def strategies(self) -> tuple[Scheduled, ...]:
        every: Sequence[GpuStrategy] = (FloatMatmul(), DequantizeMatmul(), Int8Matmul(), Planes())
        return tuple(Scheduled(strategy, self.archs, self.models) for strategy in every)

    def choose(
        self,
        n: int,
        k: int,
        weight: Scheme | None,
        activation: Scheme | None,
        hadamard_block: int,
        scale_bits: int,
        *,
        node: str,
    ) -> Choice:
        """The cheapest strategy that can do the matmul; RecipeError if there is none."""
        spec = MatmulSpec(n, k, weight, activation, hadamard_block, scale_bits)
        able = able_to_do(spec, self.strategies, node=node, where=f" on {self.name}")
        return Choice(self._best(able, spec), spec, self._explain(able, spec))

    def _best(self, able: list[Scheduled], spec: MatmulSpec) -> Scheduled:
        """By the product of the times: no number of rows outweighs another."""

        def score(strategy: Scheduled) -> float:
            product = 1.0
            for rows in TYPICAL_ROWS:
                product *= strategy.best(spec, rows, rows).score
            return product

        return able[0] if len(able) == 1 else min(able, key=score)

    def _explain(self, able: list[Scheduled], spec: MatmulSpec) -> str:
        if len(able) == 1:
            return f"{able[0].name}: the only strategy for these formats"
        return "; ".join(
            f"M={m}: " + self.models[0].explain([s.features(spec, m) for s in able])
            for m in TYPICAL_ROWS
        )

    def batch_matmul(self, transposed: bool) -> tuple[Variant, ...]:
        """The kernels of products of two activations."""
        return batch_matmul_kernels(transposed)

    def attention(
        self, head: int, value_head: int, mask: MaskKind, *, half: bool, guarded: bool = False
    ) -> tuple[AttentionVariant, ...]:
        """The kernels of attention; `half`: activations may be halves."""
        precision = precision_on(self.archs, half=half)
        spec = AttentionSpec(head, value_head, mask, precision, guarded=guarded)
        return attention_kernels(spec)

    def norm(
        self,
        kind: NormKind,
        columns: int,
        *,
        weight: bool,
        bias: bool,
        residual: bool,
        keeps_sum: bool,
    ) -> Kernel:
        """The kernel of a normalization of rows."""
        return norm_kernel(NormSpec(kind, columns, weight, bias, residual, keeps_sum))

    def softmax(self) -> Kernel:
        """The kernel of a softmax over rows."""
        return softmax_kernel()

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


def target_names() -> str:
    """The GPU targets, for messages."""
    return ", ".join([arch.name for arch in ALL] + [CUDA])
