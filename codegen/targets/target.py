"""What passes ask a target; `cpu.py` and `cuda.py` meet it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ...dialects.cache_formats import CacheFormat
from ...dialects.code_conv_spec import CodeConvSpec
from ...dialects.conv_spec import ConvSpec
from ...dialects.epilogue import Epilogue, Stage
from ...dialects.formats import Float, QuantizedTensor, Scheme
from ...dialects.norm_spec import NormSpec
from ...dialects.pool_spec import PoolSpec
from ...dialects.scan_spec import ScanSpec
from ..objects import ObjectMaker
from ..scatter import ScatterKernels
from ..strategy import (
    AttentionVariant,
    Choice,
    ConvStrategy,
    Kernel,
    MaskKind,
    MatmulSpec,
    PieceKernels,
    SharedPack,
    Variant,
)


class Table(Protocol):
    """How the rows of a table lie in memory, and the kernel that gathers them."""

    @property
    def kernel(self) -> Kernel: ...

    def pack(self, table: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The table, [rows, columns] of codes or f32, as bytes."""
        ...


class Target(Protocol):
    """A frozen description of what code is made for. Kernels that it does not have are None."""

    @property
    def name(self) -> str: ...

    @property
    def max_norm_columns(self) -> int:
        """Of rows that a kernel of `abq.norm` takes; 0: there is none."""
        ...

    @property
    def cache_types(self) -> tuple[Float, ...]:
        """Types that the second operand of `abq.batch_matmul` may have."""
        ...

    def merges_products(self, products: Sequence[Sequence[Kernel]]) -> bool:
        """Whether products of the same activations, with these kernels by ranges of rows (and what
        adds their splits), are launched as one (`merge-products`)."""
        ...

    def merged_matmul(self, kernel: Kernel, parts: int, split: int) -> Kernel | None:
        """The kernel of `parts` products that `merges_products`, all with this `kernel`; None: they
        are launched side by side."""
        ...

    def merged_reduce(self, kernel: Kernel, parts: int) -> Kernel:
        """What adds the splits of `parts` products."""
        ...

    @property
    def rounds_floats(self) -> bool:
        """Whether activations that stay float are rounded to 16 bits beside weights of codes."""
        ...

    @property
    def cost_model_status(self) -> str:
        """What choices rest on, for people."""
        ...

    @property
    def cost_model_warning(self) -> str:
        """Why these are not what the user has tuned; empty where they are."""
        ...

    @property
    def objects(self) -> ObjectMaker:
        """How kernels are compiled."""
        ...

    def choose(
        self, specs: Sequence[MatmulSpec], *, nodes: Sequence[str], working_set: int = 0
    ) -> list[Choice]:
        """The cheapest strategy for each; RecipeError, with its node, where there is none.

        `working_set` are the bytes of all weights of the model, which decide whether the next run
        finds them in a cache.
        """
        ...

    def seconds(self, choice: Choice, m: int, *, working_set: int = 0) -> float:
        """What a product of m rows takes, by the cost model."""
        ...

    def batch_matmul(self, transposed: bool, stored: Any) -> tuple[Variant, ...]:
        """The kernels of products of two activations: the second one of a type of `cache_types`, or
        what `cache_rows` gives."""
        ...

    def cache_rows(self, format: CacheFormat, columns: int) -> Any | None:
        """How products outside of attention read rows of a quantized cache."""
        ...

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
        """The kernels of attention; `half`: activations may be halves; `bf16`: they are bf16.
        `keys` and `values` are of a type of `cache_types`, or rows of quantized caches."""
        ...

    def softmax(self) -> Kernel:
        """The kernel of a softmax over rows, a grid index a row."""
        ...

    def arg_extreme(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernels of ArgMax and ArgMin over rows, by the length of a row; none for elements
        of other types than it has them for."""
        ...

    def selective_scan(self, spec: ScanSpec) -> Kernel:
        """The kernel of `abq.selective_scan`."""
        ...

    @property
    def has_sequences(self) -> bool:
        """Whether a loop over launches can be a kernel."""
        ...

    def sequence(self, name: str, text: str, launched: Sequence[Kernel]) -> Kernel:
        """The kernel of a loop over launches, which has `text`: a module with the function `name`,
        which calls other kernels, those of them that loops became, and declarations of those in
        `launched`."""
        ...

    def direct_conv(self, spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel | None:
        """The kernel of a convolution in float that reads planes (passes/direct_conv.py)."""
        ...

    def patch_conv(self, spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel | None:
        """The kernel that does the same by vectors of output channels, for small images
        (`ConvSpec.patches_pay`)."""
        ...

    def max_pool(self, spec: PoolSpec) -> Kernel | None:
        """The kernel of a pool of images in f32."""
        ...

    def polyphase(self, strides: tuple[int, int], phases: tuple[int, int]) -> Kernel | None:
        """The kernel that makes the planes which a convolution with these strides reads."""
        ...

    def pair_planes(self, strides: tuple[int, int], phases: tuple[int, int]) -> Kernel | None:
        """The same for a convolution in bf16."""
        ...

    def code_conv(
        self, spec: CodeConvSpec, *, node: str, working_set: int = 0
    ) -> ConvStrategy | str | None:
        """How a convolution of codes is done without patches (passes/direct_code_conv.py); or why
        it takes patches, as a sentence. None: all do."""
        ...

    def fused_product(self, stages: Sequence[Stage]) -> Kernel | None:
        """The kernel of products of one x with equal n, each with its epilogue
        (docs/architecture.md)."""
        ...

    def norm_pack(
        self,
        packs: Sequence[Kernel],
        spec: NormSpec,
        *,
        keeps_row: bool,
    ) -> Kernel | None:
        """The kernel of a normalization whose rows these kernels pack. `keeps_row`: the normalized
        rows are needed by others too."""
        ...

    def fused_pack(self, pack: Kernel, prologue: Epilogue) -> Kernel | None:
        """The kernel that packs rows as `pack` does, which it makes of others before: of elements,
        and of inputs that are read by elements and channels."""
        ...

    def measure(self, format_text: str) -> Kernel:
        """The kernel that finds one scale and zero point for each sample of an activation."""
        ...

    def measure_pieces(self, format_text: str) -> PieceKernels | None:
        """The same in pieces, for large samples; None where the kernel shares its work itself."""
        ...

    def gather(
        self, columns: int, scheme: Scheme | None, scale_bits: int, index_bits: int
    ) -> Table:
        """The layout and the kernel of a table whose rows are gathered."""
        ...

    def panel_gather(self, strategy: str, spec: MatmulSpec) -> Kernel | None:
        """The kernel that gathers rows from a matmul's packed weight."""
        ...


class DeviceTarget(Target, Protocol):
    """A GPU, which has kernels where a CPU runs loops."""

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
        that packs what the prologue makes of them in this `order`; None where there is none."""
        ...

    def shared_pack(self, pack: Kernel, prologue: Epilogue) -> SharedPack | None:
        """What packs a few rows as `fused_pack` does, by several blocks each; None where that is no
        faster."""
        ...

    def attention_pack(self, variant: AttentionVariant, mask: bool, pack: Kernel) -> Kernel | None:
        """The kernel of `variant` with the `pack` of its rows; None where there is none."""
        ...

    def norm(self, spec: NormSpec) -> Kernel:
        """The kernel of a normalization of rows."""
        ...

    def scan(self, element: str) -> tuple[Variant, ...]:
        """The kernels of running sums, by the number of neighbouring lines."""
        ...

    def top_k(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        """The kernels of the first k of sorted lines, by the length of a line."""
        ...

    def scatter(self, rank: int, index: str, element: str, combine: str) -> ScatterKernels:
        """The kernels of updates at positions that come from data."""
        ...
