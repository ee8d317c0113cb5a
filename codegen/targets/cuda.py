"""The targets `sm_75` to `sm_120a` and `cuda`: NVIDIA GPUs, one artifact for one or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...costmodel.interface import CostModel
from ...costmodel.load import model_for
from ...dialects.formats import Float, Scheme, parse_scheme
from ..gpu.arch import ALL, SM_75, GpuArch
from ..gpu.arg_extreme import arg_extreme_kernels
from ..gpu.attention import AttentionVariant, attention_kernels, precision_on
from ..gpu.attention_spec import AttentionSpec, MaskKind
from ..gpu.batch_matmul import batch_matmul_kernels
from ..gpu.dequantize import DequantizeMatmul
from ..gpu.float_matmul import FloatMatmul
from ..gpu.gather import TableLayout, table_layout
from ..gpu.gather_tiles import panel_gather_kernel
from ..gpu.int8 import Int8Matmul
from ..gpu.measure import measure_kernel
from ..gpu.norm import MAX_COLUMNS, NormKind, NormSpec, norm_kernel
from ..gpu.norm_pack import norm_pack_kernel
from ..gpu.objects import GpuObjects
from ..gpu.pack import PackKernel
from ..gpu.planes import Planes
from ..gpu.scan import scan_kernels
from ..gpu.scatter import ScatterKernels, scatter_kernels
from ..gpu.softmax import softmax_kernel
from ..gpu.strategy import GpuStrategy, Scheduled
from ..gpu.top_k import top_k_kernels
from ..gpu.trellis import TrellisMatmul
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
    max_norm_columns: int = MAX_COLUMNS  # rows of abq.norm that a kernel takes
    cache_types: tuple[Float, ...] = ("f32",)  # of `c` of abq.batch_matmul

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
        every: Sequence[GpuStrategy] = (
            FloatMatmul(),
            DequantizeMatmul("f16"),
            DequantizeMatmul("bf16"),
            Int8Matmul(),
            Planes(),
            TrellisMatmul(),
        )
        return tuple(Scheduled(strategy, self.archs, self.models) for strategy in every)

    def choose(
        self, specs: Sequence[MatmulSpec], *, nodes: Sequence[str], working_set: int = 0
    ) -> list[Choice]:
        """A strategy for each of these matmuls of one activation; RecipeError, with its node, where
        there is none. Weights are taken to come from DRAM, whatever the `working_set`.

        Each gets its cheapest one, or all get the same, if that saves launches that pack the
        activation in several layouts.
        """
        able = [
            able_to_do(spec, self.strategies, node=node, where=f" on {self.name}")
            for spec, node in zip(specs, nodes, strict=True)
        ]
        common = [s for s in able[0] if all(s in others for others in able)]
        each = [
            self._cheapest([spec], [[s] for s in of_spec])[0]
            for spec, of_spec in zip(specs, able, strict=True)
        ]
        chosen = self._cheapest(specs, [each, *([s] * len(specs) for s in common)])
        return [
            Choice(
                strategy,
                spec,
                self._explain(of_spec, spec, shared=strategy != own),
                "f32" if spec.weight is None else spec.half,
            )
            for strategy, spec, of_spec, own in zip(chosen, specs, able, each, strict=True)
        ]

    def _cheapest(
        self, specs: Sequence[MatmulSpec], assignments: list[list[Scheduled]]
    ) -> list[Scheduled]:
        """The strategies that take the least time together, by the product over rows and targets:
        none of these outweighs another."""

        def score(strategies: list[Scheduled]) -> float:
            product = 1.0
            for rows in TYPICAL_ROWS:
                times = [s.seconds(spec, rows) for s, spec in zip(strategies, specs, strict=True)]
                packs = {
                    s.pack_name(spec): s.pack_seconds(spec, rows)
                    for s, spec in zip(strategies, specs, strict=True)
                }
                for total in zip(*times, *packs.values(), strict=True):
                    product *= sum(total)
            return product

        return assignments[0] if len(assignments) == 1 else min(assignments, key=score)

    def _explain(self, able: list[Scheduled], spec: MatmulSpec, *, shared: bool) -> str:
        if len(able) == 1:
            return f"{able[0].name}: the only strategy for these formats"
        alone = "; ".join(
            f"M={m}: " + self.models[0].explain([s.features(spec, m) for s in able])
            for m in TYPICAL_ROWS
        )
        return alone + ("; shares its activations' layout with others" if shared else "")

    def batch_matmul(self, transposed: bool, element: Float) -> tuple[Variant, ...]:
        """The kernels of products of two activations, the second one of a type of `cache_types`."""
        assert element in self.cache_types
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

    def norm_pack(
        self,
        packs: Sequence[Kernel],
        kind: NormKind,
        columns: int,
        *,
        weight: bool,
        bias: bool,
        residual: bool,
        keeps_sum: bool,
        keeps_row: bool,
    ) -> Kernel | None:
        """The kernel of a normalization whose rows these kernels pack; None if there is none.
        `keeps_row`: the normalized rows are needed by others too."""
        spec = NormSpec(kind, columns, weight, bias, residual, keeps_sum)
        packings = [pack.packing for pack in packs if isinstance(pack, PackKernel)]
        if len(packings) < len(packs):
            return None
        return norm_pack_kernel(spec, packings, self.archs, keeps_row=keeps_row)

    def softmax(self) -> Kernel:
        """The kernel of a softmax over rows."""
        return softmax_kernel()

    def arg_extreme(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernels of ArgMax and ArgMin over rows, by the length of a row."""
        return arg_extreme_kernels(element, largest=largest)

    def scan(self, element: str) -> tuple[Variant, ...]:
        """The kernels of running sums, by the number of neighbouring lines."""
        return scan_kernels(element)

    def top_k(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernels of the first k of sorted lines, by the length of a line."""
        return top_k_kernels(element, largest=largest)

    def scatter(self, rank: int, index: str, element: str, combine: str) -> ScatterKernels:
        """The kernels of updates at positions that come from data."""
        return scatter_kernels(rank, index, element, combine)

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
