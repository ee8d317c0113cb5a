"""What a matmul strategy is: a weight layout, an activation layout and the kernels over them.

A kernel is a grid function (docs/architecture.md); nothing here assumes that it is a CPU loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from ..costmodel.ranking import Ranking
from ..dialects.code_conv_spec import CodeConvSpec
from ..dialects.epilogue import Epilogue
from ..dialects.formats import QuantizedTensor
from ..dialects.matmul_spec import MatmulSpec
from ..errors import RecipeError


@dataclass(frozen=True)
class StreamK:
    """What blocks need that stay and share tiles along K (GPUs only; docs/gpu.md): each has
    `slot_bytes` of a workspace and `flags` counters, which are 0 between launches. Of few tiles,
    each is shared by at most `parts` blocks."""

    parts: int
    slot_bytes: int
    flags: int


@dataclass(frozen=True)
class Kernel:
    """A grid function: `emit(module, isa)` adds `func.func @name` to an MLIR module.

    Two kernels with one name have one body. `block` is how many units (rows; or rows and columns)
    one grid index covers; the next one covers a neighbour in the same rows, or, `by_columns`, in
    the same columns. `isa` is a `codegen.isa.Isa` or a `codegen.gpu.arch.GpuArch`.
    `uses`: what its body is another one with, where a CPU has it (`codegen.isa.Use`).
    `most_blocks`: where the grid never has more for a product, as a block does several parts of it;
    0: no limit. `stream`: where these blocks share tiles along K.
    """

    name: str
    block: tuple[int, ...]
    emit: Callable[[Any, Any], None]
    uses: frozenset[str] = field(default=frozenset(), kw_only=True)
    by_columns: bool = field(default=False, kw_only=True)
    most_blocks: int = field(default=0, kw_only=True)
    stream: StreamK | None = field(default=None, kw_only=True)

    @property
    def parts(self) -> int:
        """Blocks that may share what one grid index covers."""
        return self.stream.parts if self.stream else 1

    def grid(self, *sizes: int) -> int:
        """The grid's size for a problem of `sizes`, which pair with `block`."""
        grid = self.parts
        for size, block in zip(sizes, self.block, strict=True):
            grid *= -(-size // block)
        return min(grid, self.most_blocks) if self.most_blocks else grid


@dataclass(frozen=True)
class SharedPack:
    """A kernel that packs up to `max_rows` rows, each by `parts` grid indices."""

    kernel: Kernel
    parts: int
    max_rows: int


@dataclass(frozen=True)
class Variant:
    """A kernel for `min_rows <= M <= max_rows`; `max_rows` None: no upper end.

    With `split` > 1 the grid has so many parts, which write partial sums to a workspace, and the
    kernel `reduce` adds them in order (GPUs only; docs/gpu.md).
    """

    kernel: Kernel
    min_rows: int
    max_rows: int | None
    split: int = 1
    reduce: Kernel | None = None

    def covers(self, rows: int) -> bool:
        return self.min_rows <= rows and (self.max_rows is None or rows <= self.max_rows)


@dataclass(frozen=True)
class ConvKernel(Kernel):
    """The kernel of an `abq.code_conv` of this `spec`; `patches` does the same by vectors of output
    channels, where there is one, and pays for some sizes (`CodeConvSpec.patches_pay`).
    `with_epilogue` gives the kernels that apply it."""

    spec: CodeConvSpec = field(kw_only=True)
    patches: Kernel | None = field(kw_only=True)
    with_epilogue: Callable[[Epilogue], ConvKernel] = field(kw_only=True)


@dataclass(frozen=True)
class PieceKernels:
    """Scales and zero points of large samples in two launches: `ranges`, a grid index for every
    `piece` values, gives `width` floats each, of which `scales` makes those of a sample.
    `gated_ranges` has a grid index for every channel, which it multiplies by a gate."""

    ranges: Kernel
    gated_ranges: Kernel
    scales: Kernel
    piece: int
    width: int


@dataclass(frozen=True)
class PlanesKernel(Kernel):
    """The kernel of an `abq.pack_planes`; `gated` is the one that multiplies channels first."""

    gated: Kernel | None


MaskKind = Literal["none", "add", "replace"]  # of attention's scores


@dataclass(frozen=True)
class AttentionVariant:
    """A kernel of attention for `min_rows <= m <= max_rows` (None: any), and what its launch needs.

    A block does `kernel.block[0]` rows of a query head; where it is `grouped`, of all heads that
    share keys. Where `blocks` is not 0, so many fill the GPU: keys are split for that (`splits_of`)
    and ranges of m are those of all rows that share keys, for up to `max_rows` of a head.
    """

    kernel: Kernel
    min_rows: int
    max_rows: int | None
    split: int = 0  # keys of a block, at least where there are `blocks`; 0: a block does all keys
    merge: Kernel | None = None
    workspace_floats: int = 0  # of a row of a split
    grouped: bool = False
    blocks: int = 0
    most_keys: int = 0  # of a block, where there are `blocks`
    prepare: Kernel | None = None  # its grid: what shares keys, times tiles of `block[0]` keys
    tile_floats: int = 0  # of a tile in the workspace, where there is `prepare`
    limits: Kernel | None = None  # what finds the keys that the rows of a mask see
    boxes: bool = False  # keys and values are read where they are, by tensor maps

    def splits_of(self, parts: int, keys: int) -> tuple[int, int]:
        """How many blocks share the keys of each of `parts`, and how many each takes, as the host
        computes it (passes/lowering/attention.py) where there are `blocks`."""
        wanted = min(self.blocks // max(parts, 1), -(-keys // self.split))
        each = -(-keys // max(wanted, -(-keys // self.most_keys), 1))
        return max(1, -(-keys // max(each, 1))), each

    def covers(self, rows: int) -> bool:
        return self.min_rows <= rows and (self.max_rows is None or rows <= self.max_rows)


class MatmulStrategy(Protocol):
    """A way to compute matmuls. Its variants cover every M >= 1 without overlap."""

    @property
    def name(self) -> str:
        """In manifests and cost models."""
        ...

    def unsupported(self, spec: MatmulSpec) -> str | None:
        """Why this strategy cannot do `spec`, as a sentence; None if it can."""
        ...

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The weight as a one-dimensional uint8 blob; float weights are f32 [N, K]."""
        ...

    def row_bytes(self, spec: MatmulSpec) -> int:
        """Bytes of one packed activation row; 0 where rows are read as f32."""
        ...

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        """The kernel that packs activations; None where rows are read as f32."""
        ...

    def matmul_kernels(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        """The kernels by ranges of M."""
        ...


class ConvStrategy(Protocol):
    """A way to compute convolutions of codes without a matrix of patches."""

    @property
    def name(self) -> str:
        """In manifests."""
        ...

    def unsupported(self, spec: CodeConvSpec) -> str | None:
        """Why it leaves `spec` to a matrix of patches, as a sentence; None if it does not."""
        ...

    def pack_weight(self, spec: CodeConvSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The weight, codes [N, K] as ONNX stores them, as a one-dimensional uint8 blob."""
        ...

    def planes_kernel(self, spec: CodeConvSpec, *, measured: bool) -> PlanesKernel:
        """The kernel of `abq.pack_planes`; `measured`: by the scales of the images themselves."""
        ...

    def conv_kernel(self, spec: CodeConvSpec) -> ConvKernel:
        """The kernel of `abq.code_conv`."""
        ...


@dataclass(frozen=True)
class Choice:
    """The strategy chosen for a matmul, and what for; `float_type` is what its kernels make of
    float activations.

    `rankings` are what the cost model says of all that are able, by rows; none where one alone is.
    `scheduled` are the kernels where a schedule was chosen with the strategy.
    `shares_layout`: a cheaper one would pack the activation in a layout of its own.
    """

    strategy: MatmulStrategy
    spec: MatmulSpec
    rankings: tuple[Ranking, ...] = ()
    float_type: str = "f32"
    shares_layout: bool = False
    scheduled: tuple[Variant, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The kernels by ranges of M."""
        return self.scheduled or self.strategy.matmul_kernels(self.spec)

    @property
    def why(self) -> str:
        """The reason, for people."""
        if not self.rankings:
            return f"{self.strategy.name}: the only strategy for these formats"
        reasons = [ranking.text for ranking in self.rankings]
        if self.shares_layout:
            reasons.append("shares its activations' layout with others")
        return "; ".join(reasons)


class Refusing(Protocol):
    """What says which matmuls it cannot do."""

    @property
    def name(self) -> str: ...

    def unsupported(self, spec: MatmulSpec) -> str | None: ...


S = TypeVar("S", bound=Refusing)


def able_to_do(spec: MatmulSpec, strategies: Sequence[S], *, node: str, where: str = "") -> list[S]:
    """The strategies that can do `spec`; RecipeError, with what each says, if there is none."""
    refusals = [s.unsupported(spec) for s in strategies]
    able = [s for s, refusal in zip(strategies, refusals, strict=True) if refusal is None]
    if not able:
        raise RecipeError(
            f"no kernel computes {spec.weight} x {spec.activation or 'float activations'}{where}: "
            + "; ".join(text for text in refusals if text),
            node=node,
            hint=f"""a rule such as '"{node}" w8a8' in a recipe file gives it other formats""",
        )
    return able
