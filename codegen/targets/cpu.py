"""The target `cpu`: x86-64, kernels for several instruction sets in one artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.load import model_for
from abqc.dialects.bf16_conv_spec import Bf16ConvSpec
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.code_conv_spec import CodeConvSpec
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import Epilogue, Stage
from abqc.dialects.formats import Float, Scheme, parse_scheme

from ...dialects.norm_spec import NormSpec
from ...dialects.pool_spec import PoolSpec
from ...dialects.scan_spec import ScanSpec
from ..cpu.arg_extreme import arg_extreme_kernel
from ..cpu.attention.kernels import attention_kernels
from ..cpu.attention.spec import AttentionSpec
from ..cpu.bf16.conv import bf16_conv_kernel
from ..cpu.bf16.planes import pair_planes_kernel
from ..cpu.bf16.strategy import Bf16Strategy
from ..cpu.float_products.batch_matmul import batch_matmul_kernels
from ..cpu.float_products.cache_rows import CacheRows
from ..cpu.float_products.depthwise_conv import depthwise_conv_kernel
from ..cpu.float_products.dequantize import Dequantize
from ..cpu.float_products.direct_conv import direct_conv_kernel
from ..cpu.float_products.image_conv import image_conv_kernel
from ..cpu.float_products.matmul import FloatMatmul
from ..cpu.float_products.matrix import Stored
from ..cpu.float_products.patch_conv import patch_conv_kernel
from ..cpu.float_products.polyphase import polyphase_kernel
from ..cpu.float_products.winograd_conv import winograd_conv_kernel
from ..cpu.fused_product import fused_product_kernel
from ..cpu.gather import TableLayout, table_layout
from ..cpu.gather_panels import panel_gather_kernel
from ..cpu.int8.strategy import Int8Strategy
from ..cpu.int8_conv.strategy import Int8Conv
from ..cpu.look_up.strategy import LookUpStrategy
from ..cpu.max_pool import max_pool_kernel
from ..cpu.packing.activations import measure_kernel
from ..cpu.packing.measure_pieces import piece_kernels
from ..cpu.packing.norm_pack import norm_pack_kernel
from ..cpu.panels.bitplane import BitplaneStrategy
from ..cpu.schedule import BASE_ISAS, CpuStrategy
from ..cpu.selective_scan import selective_scan_kernel
from ..cpu.sequence import sequence_kernel
from ..cpu.softmax import softmax_kernel
from ..cpu.trellis.float_strategy import TrellisFloatStrategy
from ..cpu.trellis.strategy import TrellisStrategy
from ..isa import ALL, Isa
from ..objects import CpuObjects, ObjectMaker
from ..strategy import (
    AttentionVariant,
    Choice,
    ConvStrategy,
    Kernel,
    MaskKind,
    MatmulSpec,
    PieceKernels,
    Variant,
    able_to_do,
)
from .cpu_plans import Plan, Planner, rankings

# What a choice is judged by: rows of decoding, of a short prompt and of a long one
# (`schedule.ROW_RANGES`), on one thread. The packed weights, and with them the strategy, are the
# same for all instruction sets; it is judged by `judged_isa`.
TYPICAL_THREADS = 1
MANY_ROWS = 128


def _cost_model() -> AnalyticModel:
    model = model_for("cpu")
    assert isinstance(model, AnalyticModel)
    return model


@dataclass(frozen=True)
class CpuTarget:
    """What passes ask a target: which strategies there are and which is best."""

    name: str = "cpu"
    max_norm_columns: int = 0  # rows of abq.norm that a kernel takes: none here
    cache_types: tuple[Float, ...] = ("f32", "f16", "bf16")  # of `c` of abq.batch_matmul
    rounds_floats: bool = False  # of activations, to 16 bits, where weights are codes
    has_sequences: bool = True  # loops over launches that are a kernel
    isas: tuple[Isa, ...] = ALL
    cost_model: AnalyticModel = field(default_factory=_cost_model, repr=False)

    def merges_products(self, products: Sequence[Sequence[Kernel]]) -> bool:
        """All are launched side by side."""
        return True

    def merged_matmul(self, kernel: Kernel, parts: int, split: int) -> None:
        """None: side by side they have kernels of their own."""

    def merged_reduce(self, kernel: Kernel, parts: int) -> Kernel:
        raise NotImplementedError("products are not split on a CPU")

    @property
    def cost_model_status(self) -> str:
        """What the choices rest on."""
        threads = f"{TYPICAL_THREADS} thread" + ("s" if TYPICAL_THREADS > 1 else "")
        return f"{self.cost_model.status}, for {self.judged_isa} on {threads}"

    @property
    def cost_model_warning(self) -> str:
        """See `Target`."""
        return self.cost_model.warning

    @cached_property
    def judged_isa(self) -> str:
        """The best instruction set of all kernels that the cost model was fitted to; the best one
        where it was fitted to none."""
        fitted = self.cost_model.fitted_isas
        names = [isa.name for isa in self.isas if isa.extends is None]
        return next((name for name in names if name in fitted), names[0])

    @cached_property
    def _planner(self) -> Planner:
        widths = {isa.vector_bits for isa in self.isas}
        isas = tuple(isa for isa in BASE_ISAS if isa.vector_bits in widths)
        judged = next(isa for isa in isas if isa.name == self.judged_isa)
        return Planner(self.cost_model, isas, judged, TYPICAL_THREADS)

    @cached_property
    def _plans(self) -> dict[tuple[str, MatmulSpec, int], Plan]:
        """Those that were made: layers of a model are alike."""
        return {}

    @property
    def objects(self) -> ObjectMaker:
        """How kernels are compiled."""
        return CpuObjects(self.isas)

    @cached_property
    def strategies(self) -> tuple[CpuStrategy, ...]:
        return (
            FloatMatmul(),
            Dequantize(),
            Int8Strategy(),
            LookUpStrategy(),
            BitplaneStrategy(),
            TrellisStrategy(),
            TrellisFloatStrategy(),
            Bf16Strategy(),
        )

    def choose(
        self, specs: Sequence[MatmulSpec], *, nodes: Sequence[str], working_set: int = 0
    ) -> list[Choice]:
        """The cheapest strategy for each; RecipeError, with its node, where there is none.

        `working_set` are the bytes of all weights of the model, which decide whether the next run
        finds them in a cache. What strategies cost includes their packing, which they share if they
        choose alike.
        """
        return [self._choose(s, node, working_set) for s, node in zip(specs, nodes, strict=True)]

    def _choose(self, spec: MatmulSpec, node: str, working_set: int) -> Choice:
        able = able_to_do(spec, self.strategies, node=node)
        plans = [self._plan(strategy, spec, working_set) for strategy in able]
        best = min(plans, key=lambda plan: plan.score)
        kernels = best.strategy.matmul_kernels(spec, best.schedules)
        float_type = "bf16" if spec.in_bf16 else "f32"
        return Choice(best.strategy, spec, rankings(plans, best), float_type, scheduled=kernels)

    def _plan(self, strategy: CpuStrategy, spec: MatmulSpec, working_set: int) -> Plan:
        key = strategy.name, spec, working_set
        if key not in self._plans:
            self._plans[key] = self._planner.plan(strategy, spec, working_set)
        return self._plans[key]

    def seconds(self, choice: Choice, m: int, *, working_set: int = 0) -> float:
        """What the cost model says of `m` rows, packing included, on one thread."""
        (strategy,) = [s for s in self.strategies if s.name == choice.strategy.name]
        return self._seconds(strategy, choice.spec, m, working_set)

    def _seconds(self, strategy: CpuStrategy, spec: MatmulSpec, m: int, working_set: int) -> float:
        plan = self._plan(strategy, spec, working_set)
        return self._planner.seconds(plan, spec, m, working_set)

    def batch_matmul(self, transposed: bool, stored: Stored) -> tuple[Variant, ...]:
        """The kernels of products of two activations: the second one of a type of `cache_types`, or
        rows of a quantized cache."""
        return batch_matmul_kernels(transposed, stored)

    def cache_rows(self, format: CacheFormat, columns: int) -> CacheRows | None:
        """How products read rows of a cache; None where they cannot."""
        return CacheRows(format, columns)

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
        """The kernels of attention, in f32 whatever `half` says, or in bf16. `keys` and `values`
        are of a type of `cache_types`, or rows of quantized caches."""
        stored_keys, stored_values = (
            CacheRows(rows, columns) if isinstance(rows, CacheFormat) else rows
            for rows, columns in ((keys, head), (values, value_head))
        )
        spec = AttentionSpec(head, value_head, mask, guarded, stored_keys, stored_values, bf16=bf16)
        return attention_kernels(spec)

    def softmax(self) -> Kernel:
        """The kernel of a softmax over rows."""
        return softmax_kernel()

    def arg_extreme(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernel of ArgMax and ArgMin over rows of f32."""
        return (Variant(arg_extreme_kernel(largest=largest), 1, None),) if element == "f32" else ()

    def selective_scan(self, spec: ScanSpec) -> Kernel:
        """The kernel of `abq.selective_scan`."""
        return selective_scan_kernel(spec)

    def sequence(self, name: str, text: str, launched: Sequence[Kernel]) -> Kernel:
        """The kernel of a loop over launches."""
        return sequence_kernel(name, text, launched)

    def direct_conv(self, spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel | None:
        """The kernel of a convolution in float, which reads planes (passes/direct_conv.py)."""
        if isinstance(spec, Bf16ConvSpec):
            return bf16_conv_kernel(spec, epilogue)
        if spec.weights_by_sample and spec.reads_images:
            return None
        if spec.winograd:
            return winograd_conv_kernel(spec, epilogue)
        if spec.few_channels:
            return image_conv_kernel(spec, epilogue)
        make = depthwise_conv_kernel if spec.depthwise else direct_conv_kernel
        return make(spec, epilogue)

    def patch_conv(self, spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel | None:
        """The kernel that does the same by vectors of output channels, where it has one."""
        return patch_conv_kernel(spec, epilogue) if spec.may_take_patches else None

    def max_pool(self, spec: PoolSpec) -> Kernel | None:
        """The kernel of a pool of images in f32, where it has one (passes/convert_max_pool.py)."""
        return max_pool_kernel(spec)

    def polyphase(self, strides: tuple[int, int], phases: tuple[int, int]) -> Kernel | None:
        """The kernel that makes the planes which a convolution with these strides reads."""
        return polyphase_kernel(strides, phases)

    def pair_planes(self, strides: tuple[int, int], phases: tuple[int, int]) -> Kernel | None:
        """The same in bf16."""
        return pair_planes_kernel(strides, phases)

    def code_conv(
        self, spec: CodeConvSpec, *, node: str, working_set: int = 0
    ) -> ConvStrategy | str:
        """How a convolution of codes is done without patches (passes/direct_code_conv.py), or why
        it takes patches: another strategy is so much faster that they pay."""
        direct = Int8Conv()
        refusal = direct.unsupported(spec)
        if refusal is not None:
            return refusal
        if spec.padded and spec.activation.format.kind == "binary":
            return direct  # patches cannot hold the zero point, which no code of one bit is
        chosen = self._choose(spec.product, node, working_set)
        m = MANY_ROWS
        patches = m * (spec.k + spec.n) / self.cost_model.cpu.patch_elements
        patches += self.seconds(chosen, m, working_set=working_set)
        if self._seconds(Int8Strategy(), spec.product, m, working_set) > patches:
            return f"strategy '{chosen.strategy.name}' over them is faster by the cost model"
        return direct

    def fused_product(self, stages: Sequence[Stage]) -> Kernel | None:
        """The kernel of products of one x with equal n, each with its epilogue."""
        return fused_product_kernel(stages)

    def norm_pack(
        self,
        packs: Sequence[Kernel],
        spec: NormSpec,
        *,
        keeps_row: bool,
    ) -> Kernel | None:
        """The kernel of a normalization whose rows these kernels pack; None if there is none.
        `keeps_row`: the normalized rows are needed by others too."""
        return norm_pack_kernel(spec, packs, keeps_row=keeps_row)

    def fused_pack(self, pack: Kernel, prologue: Epilogue) -> None:
        """None: loops before packs are fused with what is before them."""

    def measure(self, format_text: str) -> Kernel:
        """The kernel that finds one scale and zero point for each sample of an activation."""
        return measure_kernel(parse_scheme(format_text).format)

    def measure_pieces(self, format_text: str) -> PieceKernels | None:
        """The same in pieces, for large samples; None where the kernel shares its work itself."""
        return piece_kernels(parse_scheme(format_text).format)

    def gather(
        self, columns: int, scheme: Scheme | None, scale_bits: int, index_bits: int
    ) -> TableLayout:
        """The layout and the kernel of a table whose rows are gathered."""
        return table_layout(columns, scheme, scale_bits=scale_bits, index_bits=index_bits)

    def panel_gather(self, strategy: str, spec: MatmulSpec) -> Kernel | None:
        """The kernel that gathers rows from a matmul's packed weight; None if there is none."""
        return panel_gather_kernel(strategy, spec)
