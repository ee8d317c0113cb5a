"""What a cost model is asked and what it answers; passes import this file alone.

The interface is that of TVM's cost models (`load`, `save`, `fit`, `predict`) plus `rank`, which is
what passes use, and `explain`, which is what people read. An operation is described by plain
numbers, so that a model can be trained, stored and evaluated without the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from .ranking import Prediction


@dataclass(frozen=True)
class MatmulFeatures:
    """One `m x k` by `k x n` matmul done by one strategy on a CPU.

    `weight_bits` and `activation_bits` are the bits of one code; 32 where the operand is float;
    codes of `indexed` weights stand in a table for what they mean.
    `weight_bytes` is the packed weight as stored, scales included. `groups` is the number of
    groups along K that have a scale of their own. `working_set` is the number of bytes that pass
    between two runs of this operation (all weights of the model): it decides from which level of
    the memory the weights come; 0 means that nothing else runs in between.

    `schedule` names one of several that the strategy has, and the numbers after it are that
    schedule: a tile of `tile_m` rows by `tile_n` columns is accumulated in registers, in `chains`
    independent sums each; a grid index does `block_m` rows by `block_n` columns, of which the next
    does its neighbour in the same rows or, `by_columns`, in the same columns; weights are
    fetched `prefetch` tiles ahead; with `decode_once` they are unpacked once for all rows of a
    block, `block_k` terms at a time (0: all). 0 where there is no such choice. `operations` is the
    histogram of the kernel's MLIR: how often it has an operation of a name; empty where nobody
    looked.
    """

    strategy: str
    m: int
    n: int
    k: int
    weight_bits: int
    activation_bits: int
    weight_bytes: int
    groups: int = 1
    isa: str = "avx512"
    threads: int = 1
    working_set: int = 0
    schedule: str = ""
    tile_m: int = 0
    tile_n: int = 0
    chains: int = 0
    block_m: int = 0
    block_n: int = 0
    prefetch: int = 0
    decode_once: bool = False
    block_k: int = 0
    by_columns: bool = False
    indexed: bool = False
    operations: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class KernelFeatures:
    """One matmul done by one strategy and schedule on a GPU: its launch, or launch and reduce.

    Everything a block does for padding (rows up to `block_m`, columns up to `block_n`, K up to
    whole units) is counted. A multiply-add is two operations, a one-bit one too: `mma.sync` b1
    m16n8k256 is 65536. `alu_ops` are instructions of one lane (shifts, LOP3, IADD3, conversions)
    that decode weights or combine planes; per element of the weight they count once for each row
    of blocks that decodes it.

    Bytes are those of the operands as stored, each counted once: how often they are read again
    follows from the blocks. `workspace_bytes` is what a split writes and the reduction reads,
    `split * m * n * 4`; 0 without a split. `bytes_in_flight` is what one block has asked of global
    memory before it waits for the first of it: `stages - 1` tiles, or the 16-byte loads that the
    threads of a rows kernel issue ahead. `shared_by`: blocks that stay share tiles along K, at most
    so many a tile, and `blocks` are tiles; 0: each block has whole ones.
    """

    arch: str  # "sm_90a"
    strategy: str
    schedule: str  # its name
    kind: str  # "rows" (CUDA cores), "tile" (MMA) or "wgmma"
    m: int
    n: int
    k: int
    weight_bits: int
    activation_bits: int  # 16 or 32 where activations stay float
    block_m: int
    block_n: int
    block_k: int
    blocks: int  # of the matmul's launch, all splits
    threads: int  # of one block
    weight_bytes: int
    activation_bytes: int
    written_bytes: int
    bytes_in_flight: int
    b1_ops: float = 0.0
    s8_ops: float = 0.0
    f16_ops: float = 0.0  # of the tensor cores; bf16 as well
    wgmma_b1_ops: float = 0.0  # the same by `wgmma` in place of `mma.sync`
    wgmma_s8_ops: float = 0.0
    wgmma_f16_ops: float = 0.0
    f32_ops: float = 0.0  # flops of CUDA cores
    dp4a_ops: float = 0.0  # byte products of CUDA cores, eight operations an instruction
    alu_ops: float = 0.0
    issued: float = 0.0  # instructions of threads, all of them
    special_ops: float = 0.0  # exponentials, reciprocals
    shared_traffic: float = 0.0  # bytes between shared memory and registers, of all blocks
    workspace_bytes: int = 0
    warps_k: int = 1
    stages: int = 1
    split: int = 1
    registers: int = 0  # of one thread as the assembler reports them; 0: not assembled
    shared_bytes: int = 0  # of one block, static and dynamic
    launches: int = 1
    persistent: bool = False  # blocks stay, and go on to the next tile while others still store
    shared_by: int = 0
    group_m: int = 1  # rows of blocks whose blocks follow each other column by column

    def changed(self, **fields: Any) -> KernelFeatures:
        """With other values of these fields, as `dataclasses.replace` in a tenth of its time: a
        choice is among thousands."""
        new = object.__new__(KernelFeatures)
        new.__dict__.update(self.__dict__, **fields)
        return new


Features = MatmulFeatures | KernelFeatures
F = TypeVar("F", MatmulFeatures, KernelFeatures)


@dataclass(frozen=True)
class Sample:
    """A measured cost in seconds: the median of `repetitions` runs on `device` at `date` (ISO).
    `spread` is the range of the middle half of the runs over the median; 0 where nobody looked."""

    features: Features
    seconds: float
    device: str = ""
    driver: str = ""
    date: str = ""
    repetitions: int = 1
    spread: float = 0.0


class Estimate(Protocol):
    """An analytic prediction. `terms` are seconds by resource; a residual looks at them."""

    @property
    def seconds(self) -> float: ...

    @property
    def bound(self) -> str:
        """The resource that decides, such as `DRAM-bound`."""
        ...

    @property
    def terms(self) -> Mapping[str, float]: ...


class CostModel(Protocol[F]):
    """Predicts seconds. Lower is better; only the order matters to a choice."""

    @property
    def status(self) -> str:
        """What the predictions rest on, such as `analytic only`."""
        ...

    @property
    def warning(self) -> str:
        """Why they do not rest on what the user has tuned; empty where they do."""
        ...

    def predict(self, features: F) -> float:
        """Seconds of one run."""
        ...

    def predict_all(self, candidates: Sequence[F]) -> list[float]:
        """Seconds of each: faster than one by one."""
        ...

    def rank(self, candidates: Sequence[F]) -> list[F]:
        """The candidates, cheapest first; equal ones keep their order."""
        ...

    def predictions(self, candidates: Sequence[F]) -> list[Prediction]:
        """What each candidate costs and why, cheapest first."""
        ...

    def explain(self, candidates: Sequence[F]) -> str:
        """One sentence that says what each candidate costs and why, cheapest first."""
        ...

    def fit(self, samples: Sequence[Sample]) -> None:
        """Adjust the model to measurements of one machine. Raises InputError."""
        ...

    def save(self, path: Path) -> None:
        """Write the model as one JSON file."""
        ...

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises ArtifactError for a file that is not of this model."""
        ...
