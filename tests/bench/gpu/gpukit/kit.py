"""The kit as a folder: `kit.json`, kernels and test cases. Read where the GPU is.

kit.json            what follows, as JSON
kernels/NAME.z      a cubin, or PTX with a final NUL, compressed by zlib
kernels/NAME.ptx.z  the PTX of some that have a cubin
cases/*.npz         packed weights, biases and expected outputs
models/NAME/        model.so.xz and feed_<name>.npz: inputs `in_*`, expected outputs `out_*`
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abqc.errors import InputError
from abqc.runtime.tensor_parameter import TensorParameter

FORMAT = "abqc-gpu-kit-1"
FILE = "kit.json"
MODEL = "model.so.xz"  # of a model's folder


@dataclass(frozen=True)
class KernelImage:
    """A built kernel. `shared_bytes` is dynamic; `registers` 0: not assembled; `ptx`: it is there
    as PTX too; `maps`: the numbers of its TensorParameters."""

    name: str
    threads: int
    shared_bytes: int
    registers: int = 0
    ptx: bool = False
    maps: list[list[int]] = field(default_factory=list)

    @property
    def tensor_parameters(self) -> tuple[TensorParameter, ...]:
        return tuple(map(TensorParameter.of_numbers, self.maps))


@dataclass(frozen=True)
class RateJob:
    """A kernel that repeats one instruction of shape (m, n, k) on the tensor cores.

    Its arguments are (out, turns i32, seed i32); a block issues `instructions` of them a turn (for
    mma.sync of all its warps, for wgmma of all its warpgroups).
    """

    name: str  # "mma.sync b1.m16n8k256", "wgmma b1.m64n128k256"
    family: str  # "b1", "s8", "f16", "bf16"
    kernel: str
    shape: tuple[int, int, int]
    instructions: int
    turns: int
    blocks_per_sm: int

    @property
    def operations(self) -> int:
        """Of one block and turn; a multiply-add is two."""
        m, n, k = self.shape
        return 2 * m * n * k * self.instructions


@dataclass(frozen=True)
class MatmulLaunches:
    """The launches of one matmul: packing (None: rows are read as f32), product, reduction.

    `slots_bytes`: of the workspace of blocks that share tiles, which have so many `counters`; 0:
    they do not.
    """

    kernel: str
    grid: int
    split: int
    pack: str | None
    pack_grid: int
    row_bytes: int
    reduce: str | None
    reduce_grid: int
    slots_bytes: int = 0
    counters: int = 0

    @property
    def kernels(self) -> list[str]:
        return [name for name in (self.pack, self.kernel, self.reduce) if name]


@dataclass(frozen=True)
class CheckCase:
    """A matmul and what it must give: `file` has weight, bias, y and allowed, of all rows.

    x is `activations(rows, k)[:m]`. `rows_digest`: CRC-32 of each packed row, in hexadecimal; empty
    where rows are not packed.
    """

    name: str
    format: str
    strategy: str
    schedule: str
    m: int
    n: int
    k: int
    file: str
    rows_digest: str
    launches: MatmulLaunches


@dataclass(frozen=True)
class TableJob:
    """One line of the table. `rank` 0 is what the cost model picks, `predicted` its seconds."""

    format: str
    strategy: str
    rank: int
    predicted: float
    launches: MatmulLaunches
    features: dict[str, Any]  # KernelFeatures


@dataclass(frozen=True)
class AttentionJob:
    """A launch of attention: one batch, `heads` query heads of `head` columns, of which `group`
    share keys and values.

    `format`: of keys and values, f32, f16, kv8 or kv4, whose rows have `row_bytes`. `precision`: of
    the products. `causal`: with a mask that is added and hides later keys. `splits` 0: blocks do
    not share the keys; else splits of `split_keys` each. `prepare` makes tiles of keys and values
    in the workspace, `limits` finds what the mask's rows see (None: there is no such kernel).
    `boxes`: keys and values are read by tensor maps.
    """

    name: str
    kernel: str
    format: str
    precision: str
    heads: int
    group: int
    head: int
    rows: int
    keys: int
    causal: bool
    grid: int
    row_bytes: int
    splits: int = 0
    split_keys: int = 0
    workspace_bytes: int = 0
    prepare: str | None = None
    prepare_grid: int = 0
    limits: str | None = None
    limits_grid: int = 0
    boxes: bool = False

    @property
    def cache_bytes(self) -> int:
        """Of keys, and of values."""
        return self.heads // self.group * self.keys * self.row_bytes

    @property
    def operations(self) -> int:
        """A multiply-add is two; what a causal mask hides does not count."""
        pairs = self.rows * self.keys
        if self.causal:
            pairs -= self.rows * (self.rows - 1) // 2
        return 4 * self.heads * self.head * pairs


@dataclass(frozen=True)
class ModelFeed:
    """One run of a model, or `steps` runs each of which gets the caches of the one before:
    `models/<model>/<file>`.

    `new_rows`: of these caches among the outputs so many last rows are stored. `caches` maps inputs
    to the outputs that are their next values; `growing` has the inputs that grow by a column a
    step, stored in their last size, and their columns in the first step. Other inputs of several
    steps are stored one after another along a new first axis.
    """

    model: str
    name: str  # "prompt 128", "decode 64 after 512"
    file: str
    tolerance: float  # of an output's range
    new_rows: dict[str, int] = field(default_factory=dict)
    steps: int = 1
    caches: dict[str, str] = field(default_factory=dict)
    growing: dict[str, int] = field(default_factory=dict)

    def inputs_of(self, step: int, arrays: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a step; its caches are those of the first."""

        def value(name: str, array: Any) -> Any:
            if self.steps == 1 or name in self.caches:
                return array
            if name in self.growing:
                return array[..., : self.growing[name] + step]
            return array[step]

        return {name: value(name, array) for name, array in arrays.items()}


@dataclass(frozen=True)
class ProbeSizes:
    """How much the probes do: bytes of memory (a power of two of lines of 128), dependent loads,
    loads of a thread that keeps the memory busy, dependent adds to read the clock by, and adds that
    take longer than to put a step of a model into a stream."""

    bytes: int = 1 << 30
    turns: int = 1000
    spins: int = 8000
    clock_turns: int = 20_000
    wait_turns: int = 20_000_000


@dataclass(frozen=True)
class Kit:
    """Everything, as `kit.json` has it."""

    folder: Path
    target: str
    capability: tuple[int, int]
    specific: bool  # runs on exactly this capability
    date: str
    check_rows: int
    copy_bytes: int
    probe: ProbeSizes
    kernels: dict[str, KernelImage]
    rates: list[RateJob]
    cases: list[CheckCase]
    table: list[TableJob]
    feeds: list[ModelFeed]
    operators: list[ModelFeed]
    attention: list[AttentionJob]
    notes: list[str]  # what is missing and why, kernels that spill

    def image(self, name: str, *, ptx: bool = False) -> bytes:
        """What the driver loads; `ptx`: the PTX beside the cubin."""
        file = f"{name}.ptx.z" if ptx else f"{name}.z"
        return zlib.decompress((self.folder / "kernels" / file).read_bytes())

    def write(self) -> None:
        data = dataclasses.asdict(self) | {"format": FORMAT}
        del data["folder"]
        (self.folder / FILE).write_text(json.dumps(data, separators=(",", ":")))


def read(folder: Path) -> Kit:
    """The kit in `folder`. InputError where there is none of this format."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text())
        found = data.pop("format")
        if found != FORMAT:
            raise ValueError(f"its format is {found}")
        data["capability"] = tuple(data["capability"])
        data["kernels"] = {name: KernelImage(**k) for name, k in data["kernels"].items()}
        data["probe"] = ProbeSizes(**data["probe"])
        data["rates"] = [RateJob(**{**r, "shape": tuple(r["shape"])}) for r in data["rates"]]
        data["cases"] = [CheckCase(**_with_launches(c)) for c in data["cases"]]
        data["table"] = [TableJob(**_with_launches(t)) for t in data["table"]]
        data["feeds"] = [ModelFeed(**f) for f in data["feeds"]]
        data["operators"] = [ModelFeed(**f) for f in data["operators"]]
        data["attention"] = [AttentionJob(**j) for j in data["attention"]]
        return Kit(folder=folder, **data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no kit: {error}", hint="build.py writes one") from error


def _with_launches(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "launches": MatmulLaunches(**entry["launches"])}
