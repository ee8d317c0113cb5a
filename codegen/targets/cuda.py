"""The targets `sm_75` to `sm_120a` and `cuda`: NVIDIA GPUs, one artifact for one or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from abqc.costmodel.interface import CostModel
from abqc.costmodel.load import model_for
from abqc.costmodel.ranking import Ranking
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.code_conv_spec import CodeConvSpec
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import Epilogue, Stage
from abqc.dialects.formats import Float, Scheme, parse_scheme

from ...dialects.norm_spec import MAX_COLUMNS, NormSpec
from ...dialects.pool_spec import PoolSpec
from ...dialects.scan_spec import ScanSpec
from ..gpu.arch import ALL, SM_75, GpuArch
from ..gpu.assembly.objects import GpuObjects
from ..gpu.attention.features import first_wgmma_rows
from ..gpu.attention.kernels import attention_kernels, precision_on
from ..gpu.attention.row_lanes import THREADS as ROW_THREADS
from ..gpu.attention.spec import AttentionSpec
from ..gpu.float_products.batch_matmul import batch_matmul_kernels
from ..gpu.float_products.matmul import FloatMatmul
from ..gpu.indexing.gather import TableLayout, table_layout
from ..gpu.indexing.gather_tiles import panel_gather_kernel
from ..gpu.indexing.scatter import scatter_kernels
from ..gpu.lines import order_keys
from ..gpu.lines.arg_extreme import arg_extreme_kernels
from ..gpu.lines.scan import scan_kernels
from ..gpu.lines.selective_scan import selective_scan_kernel
from ..gpu.lines.top_k import top_k_kernels
from ..gpu.matmul.dequantize import DequantizeMatmul
from ..gpu.matmul.gated import gate_of, gated
from ..gpu.matmul.int8 import Int8Matmul
from ..gpu.matmul.merged import MAX_PARTS, merged_matmul, merged_reduce
from ..gpu.matmul.strategy import GpuStrategy, Scheduled
from ..gpu.packing.last_block import with_pack
from ..gpu.packing.measure import measure_kernel
from ..gpu.packing.pack import PackKernel, fused_pack_kernel
from ..gpu.packing.shared_row import shared_pack
from ..gpu.planes.strategy import Planes
from ..gpu.rows.norm import norm_kernel
from ..gpu.rows.norm_pack import norm_pack_kernel
from ..gpu.rows.softmax import softmax_kernel
from ..gpu.trellis.strategy import TrellisMatmul
from ..gpu.wgmma.schedules import WgmmaKernel
from ..objects import ObjectMaker
from ..scatter import ScatterKernels
from ..strategy import (
    AttentionVariant,
    Choice,
    Kernel,
    MaskKind,
    MatmulSpec,
    PieceKernels,
    SharedPack,
    Variant,
    able_to_do,
)

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
    cache_types: tuple[Float, ...] = ("f32", "f16", "bf16")  # of `c` of abq.batch_matmul
    rounds_floats: bool = True  # of activations, to 16 bits, where weights are codes
    has_sequences: bool = False  # loops over launches that are a kernel

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
    def cost_model_warning(self) -> str:
        """See `Target`."""
        return "; ".join(dict.fromkeys(model.warning for model in self.models if model.warning))

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
        launched = _merged(specs, chosen)
        return [
            Choice(
                strategy,
                spec,
                self._rankings(of_spec, spec),
                "f32" if spec.weight is None else spec.half,
                shares_layout=strategy != own,
                scheduled=strategy.matmul_kernels(together),
            )
            for (strategy, together), spec, of_spec, own in zip(
                launched, specs, able, each, strict=True
            )
        ]

    def _cheapest(
        self, specs: Sequence[MatmulSpec], assignments: list[list[Scheduled]]
    ) -> list[Scheduled]:
        """The strategies that take the least time together, by the product over rows and targets:
        none of these outweighs another. Products that are alike are launched as one."""

        def score(strategies: list[Scheduled]) -> float:
            product = 1.0
            launched = {(s.name, spec): s for s, spec in _merged(specs, strategies)}
            for rows in TYPICAL_ROWS:
                times = [s.seconds(spec, rows) for (_, spec), s in launched.items()]
                packs = {
                    s.pack_name(spec): s.pack_seconds(spec, rows)
                    for s, spec in zip(strategies, specs, strict=True)
                }
                for total in zip(*times, *packs.values(), strict=True):
                    product *= sum(total)
            return product

        return assignments[0] if len(assignments) == 1 else min(assignments, key=score)

    def seconds(self, choice: Choice, m: int, *, working_set: int = 0) -> float:
        """What the cost models say of `m` rows, packing included, on the slowest of the targets.

        Weights are taken to come from DRAM, whatever the `working_set`.
        """
        (strategy,) = [s for s in self.strategies if s.name == choice.strategy.name]
        times = strategy.seconds(choice.spec, m)
        packs = strategy.pack_seconds(choice.spec, m)
        return max(map(sum, zip(times, packs, strict=True)))

    def _rankings(self, able: list[Scheduled], spec: MatmulSpec) -> tuple[Ranking, ...]:
        if len(able) == 1:
            return ()
        model = self.models[0]
        return tuple(
            Ranking(m, tuple(model.predictions([s.features(spec, m) for s in able])))
            for m in TYPICAL_ROWS
        )

    def batch_matmul(self, transposed: bool, element: Float) -> tuple[Variant, ...]:
        """The kernels of products of two activations, the second one of a type of `cache_types`."""
        assert element in self.cache_types
        return batch_matmul_kernels(transposed, element)

    def cache_rows(self, format: CacheFormat, columns: int) -> None:
        """How products outside of attention read rows of a quantized cache: not as they are."""

    def attention(
        self,
        head: int,
        value_head: int,
        mask: MaskKind,
        *,
        half: bool,
        bf16: bool = False,
        guarded: bool = False,
        keys: CacheFormat | Float = "f32",
        values: CacheFormat | Float = "f32",
    ) -> tuple[AttentionVariant, ...]:
        """The kernels of attention; `half`: activations may be halves; `bf16`: they are bf16, which
        changes nothing here. `keys` and `values` are of
        a type of `cache_types`, or rows of quantized caches."""
        precision = precision_on(self.archs, half=half)
        spec = AttentionSpec(head, value_head, mask, precision, guarded, keys, values)
        rows = first_wgmma_rows(spec, self.archs, self.models)
        return attention_kernels(spec, wgmma_rows=rows)

    def attention_pack(self, variant: AttentionVariant, mask: bool, pack: Kernel) -> Kernel | None:
        """The kernel of `variant` whose last block packs the rows; None where there is none."""
        if not variant.blocks or not isinstance(pack, PackKernel):
            return None
        return with_pack(variant.kernel, ROW_THREADS, 4 if mask else 3, pack)

    def merges_products(self, products: Sequence[Sequence[Kernel]]) -> bool:
        """Those with the same kernels."""
        names = [[kernel.name for kernel in kernels] for kernels in products]
        return len(names) <= MAX_PARTS and all(other == names[0] for other in names)

    def merged_matmul(self, kernel: Kernel, parts: int, split: int) -> Kernel:
        """The kernel of so many products with this `kernel`."""
        return merged_matmul(kernel, parts, split)

    def merged_reduce(self, kernel: Kernel, parts: int) -> Kernel:
        """What adds the splits of `parts` products."""
        return merged_reduce(kernel, parts)

    def gated_product(
        self,
        kernel: Kernel,
        parts: int,
        pack: Kernel,
        prologue: Epilogue,
        order: tuple[int, ...],
        *,
        reduces: bool,
    ) -> Kernel | None:
        """The kernel of `parts` products with this `kernel`, which has no split or `reduces` one,
        that packs rows of 16-bit floats; None for other rows and kernels by wgmma."""
        if isinstance(kernel, WgmmaKernel) or not isinstance(pack, PackKernel):
            return None
        gate = gate_of(pack, prologue, order)
        return None if gate is None else gated(kernel, parts, gate, reduces=reduces)

    def norm(self, spec: NormSpec) -> Kernel:
        """The kernel of a normalization of rows."""
        return norm_kernel(spec)

    def sequence(self, name: str, text: str, launched: Sequence[Kernel]) -> Kernel:
        raise NotImplementedError("loops over launches stay with the host")

    def direct_conv(self, spec: ConvSpec, epilogue: Epilogue | None = None) -> None:
        """None: convolutions are products with patches."""

    def patch_conv(self, spec: ConvSpec, epilogue: Epilogue | None = None) -> None:
        """None, likewise."""

    def max_pool(self, spec: PoolSpec) -> None:
        """None: pools are loops."""

    def polyphase(self, strides: tuple[int, int], phases: tuple[int, int]) -> None:
        """None: no convolution reads planes."""

    def pair_planes(self, strides: tuple[int, int], phases: tuple[int, int]) -> None:
        """None, likewise."""

    def code_conv(self, spec: CodeConvSpec, *, node: str, working_set: int = 0) -> None:
        """None: so are those of codes."""

    def fused_product(self, stages: Sequence[Stage]) -> None:
        """None: what follows products are loops."""

    def norm_pack(
        self,
        packs: Sequence[Kernel],
        spec: NormSpec,
        *,
        keeps_row: bool,
    ) -> Kernel | None:
        """The kernel of a normalization whose rows these kernels pack; None if there is none.
        `keeps_row`: the normalized rows are needed by others too."""
        packings = [pack.packing for pack in packs if isinstance(pack, PackKernel)]
        if len(packings) < len(packs):
            return None
        return norm_pack_kernel(spec, packings, self.archs, keeps_row=keeps_row)

    def fused_pack(self, pack: Kernel, prologue: Epilogue) -> Kernel | None:
        """The kernel that packs rows as `pack` does, after the prologue."""
        return fused_pack_kernel(pack, prologue) if isinstance(pack, PackKernel) else None

    def shared_pack(self, pack: Kernel, prologue: Epilogue) -> SharedPack | None:
        """The kernel of a few rows, each of several blocks, after the prologue."""
        return shared_pack(pack, prologue) if isinstance(pack, PackKernel) else None

    def softmax(self) -> Kernel:
        """The kernel of a softmax over rows."""
        return softmax_kernel()

    def arg_extreme(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernels of ArgMax and ArgMin over rows, by the length of a row."""
        known = element in order_keys.ELEMENTS
        return arg_extreme_kernels(element, largest=largest) if known else ()

    def scan(self, element: str) -> tuple[Variant, ...]:
        """The kernels of running sums, by the number of neighbouring lines."""
        return scan_kernels(element)

    def selective_scan(self, spec: ScanSpec) -> Kernel:
        """The kernel of `abq.selective_scan`."""
        return selective_scan_kernel(spec)

    def top_k(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernels of the first k of sorted lines, by the length of a line."""
        return top_k_kernels(element, largest=largest)

    def scatter(self, rank: int, index: str, element: str, combine: str) -> ScatterKernels:
        """The kernels of updates at positions that come from data."""
        return scatter_kernels(rank, index, element, combine)

    def measure(self, format_text: str) -> Kernel:
        """The kernel that finds one scale and zero point for each sample of an activation."""
        return measure_kernel(parse_scheme(format_text).format)

    def measure_pieces(self, format_text: str) -> PieceKernels | None:
        """The same in pieces, for large samples; None where the kernel shares its work itself."""
        return None

    def gather(
        self, columns: int, scheme: Scheme | None, scale_bits: int, index_bits: int
    ) -> TableLayout:
        """The layout and the kernel of a table whose rows are gathered."""
        return table_layout(columns, scheme, scale_bits=scale_bits, index_bits=index_bits)

    def panel_gather(self, strategy: str, spec: MatmulSpec) -> Kernel | None:
        """The kernel that gathers rows from a matmul's packed weight; None if there is none."""
        return panel_gather_kernel(strategy, spec)


def _merged(
    specs: Sequence[MatmulSpec], strategies: Sequence[Scheduled]
) -> tuple[tuple[Scheduled, MatmulSpec], ...]:
    """For each of these products of one activation, the one as which it is launched with those that
    have the same kernels (`merge-products`): it has the columns of all."""
    columns: dict[tuple[str, MatmulSpec], int] = {}
    keys = [(s.name, replace(spec, n=0)) for s, spec in zip(strategies, specs, strict=True)]
    for key, spec in zip(keys, specs, strict=True):
        columns[key] = columns.get(key, 0) + spec.n
    return tuple(
        (s, replace(key[1], n=columns[key])) for s, key in zip(strategies, keys, strict=True)
    )


def target_names() -> str:
    """The GPU targets, for messages."""
    return ", ".join([arch.name for arch in ALL] + [CUDA])
