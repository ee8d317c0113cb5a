"""Small models of the operators that have kernels of their own, and what numpy makes of them.

`onnx.reference` computes in numpy; where a recipe quantizes, the CPU's artifact does.
"""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import abqc
import numpy as np
import onnx
from abqc.compiler.driver import compile_file
from abqc.errors import CompileError
from abqc.runtime.artifact import manifest_of
from gpukit.kit import MODEL, ModelFeed
from onnx.reference import ReferenceEvaluator
from operator_graph import Feeds, Graph, integers, normal

from .images import Progress
from .plan import Plan

FLOAT_SUMS = 1e-5  # of an output's range: f32 sums in another order
BF16_PAIRS = 3e-5  # attention's products on tensor cores (docs/gpu.md)
HALVES = 2e-3  # the same of f16
ONE_STEP = 4e-3  # a code that differs by one step, docs/numerics.md


@dataclass(frozen=True)
class Operators:
    """A graph, the inputs of its runs, the kernels that it is there for (how their names begin),
    and how far it may be off."""

    name: str
    graph: Callable[[], Graph]
    runs: Sequence[Feeds]
    kernels: Sequence[str]
    tolerance: float = FLOAT_SUMS
    recipe: str = "none"


def operator_feeds(plan: Plan, target: str, folder: Path, progress: Progress) -> list[ModelFeed]:
    """Write the models to `folder`/models; their runs."""
    made = []
    for operators in (o for o in every() if o.name in plan.operators):
        progress(f"operators {operators.name}")
        made += _write(operators, target, folder / "models" / f"operators-{operators.name}")
    return made


def _write(operators: Operators, target: str, place: Path) -> list[ModelFeed]:
    place.mkdir(parents=True, exist_ok=True)
    proto = operators.graph().build()
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "model.onnx")
        onnx.save(proto, source)
        gpu = compile_file(
            source, quant=operators.recipe, target=target, output=Path(scratch, "gpu.so")
        )
        _check_kernels(operators, gpu)
        (place / MODEL).write_bytes(lzma.compress(gpu.read_bytes()))
        names = [output.name for output in proto.graph.output]
        for number, feeds in enumerate(operators.runs):
            outputs = _expected(operators, proto, source, feeds)
            stored = {f"in_{name}": array for name, array in feeds.items()}
            stored |= {f"out_{name}": array for name, array in zip(names, outputs, strict=True)}
            file = f"feed_{number}.npz"
            np.savez_compressed(place / file, **stored)
            sizes = " ".join("x".join(map(str, array.shape)) for array in feeds.values())
            made.append(ModelFeed(place.name, sizes, file, operators.tolerance))
    return made


def _check_kernels(operators: Operators, library: Path) -> None:
    """What the model is there for is in it: else it would check something else."""
    (code,) = manifest_of(library)["gpu"]
    for wanted in operators.kernels:
        if not any(name.startswith(wanted) for name in code["kernels"]):
            raise CompileError(
                f"the operators '{operators.name}' have no kernel '{wanted}'",
                hint="write their graph so that it is recognized, or name the kernels it has",
            )


def _expected(
    operators: Operators, proto: onnx.ModelProto, source: Path, feeds: Feeds
) -> list[np.ndarray]:
    if operators.recipe == "none":
        return ReferenceEvaluator(proto).run(None, feeds)
    with abqc.compile(source, quant=operators.recipe, output=source.with_name("cpu.so")) as cpu:
        return cpu.run(feeds)


# ---- the models ----


def every() -> list[Operators]:
    """One for each family of kernels."""
    attention = [_heads(rows, keys) for rows, keys in ((1, 300), (6, 40), (70, 70))]
    rows = [{"x": normal(m, 256), "r": normal(m, 256)} for m in (1, 20)]
    ids = [{"i": integers(count, low=0, high=300)} for count in (1, 70)]
    return [
        Operators("attention", _attention, attention, ("attention_rows", "attention_"), BF16_PAIRS),
        # By `mma.sync` with tiles of 32 keys, which wide heads have.
        Operators(
            "attention-80",
            partial(_attention, 80),
            [_heads(9, 40, 80), _heads(64, 70, 80)],
            ("attention_bf16x3_d80_",),
            BF16_PAIRS,
        ),
        Operators(
            "attention-160-f16",
            partial(_attention, 160, projected=True),
            [_heads(9, 40, 160), _heads(64, 70, 160)],
            ("attention_f16_d160_",),
            HALVES,
            "w4a16",
        ),
        Operators(
            "norms",
            _norms,
            [{"x": normal(3, 192)}, {"x": normal(70, 192)}],
            ("norm_layer", "norm_rms", "softmax"),
        ),
        Operators("norm-packs", _norm_packs, rows, ("norm_layer_256_rkwb_",), ONE_STEP, "w4a8"),
        Operators(
            "gated-packs",
            _gated_packs,
            [{"x": normal(m, 32)} for m in (1, 3)],
            ("shared_pack_", "pack_"),
            ONE_STEP,
            "w4a8",
        ),
        Operators("embedding", _embedding, ids, ("gather",), FLOAT_SUMS, "w4a8"),
        Operators(
            "lines",
            _lines,
            [{"x": normal(3, 50)}, {"x": normal(2, 3000)}],
            ("scan_rows", "scan_columns", "top_k", "argmax", "argmin"),
        ),
        Operators("copies", _copies, [{"x": normal(5, 6, 8)}], ("loops_", "abqc_copy")),
        Operators(
            "scatters",
            _scatters,
            [_updates(9), _updates(200)],
            ("scatter_addf", "scatter_maximumf", "scatter_claim", "scatter_replace"),
        ),
    ]


def _heads(rows: int, keys: int, columns: int = 32) -> Feeds:
    return {
        "q": normal(1, 4, rows, columns),
        "k": normal(1, 4, keys, columns),
        "v": normal(1, 4, keys, columns),
        "mask": np.where(normal(1, 1, rows, keys) > 1, np.float32(-1e9), np.float32(0)),
    }


def _attention(columns: int = 32, *, projected: bool = False) -> Graph:
    """`projected`: queries are products with weights, which a recipe is about."""
    g = Graph(
        q=("float32", 1, 4, "m", columns),
        k=("float32", 1, 4, "t", columns),
        v=("float32", 1, 4, "t", columns),
        mask=("float32", 1, 1, "m", "t"),
    )
    queries = "q"
    if projected:
        queries = g("MatMul", "q", normal(columns, columns) * np.float32(columns**-0.5))
    scores = g("MatMul", queries, g("Transpose", "k", perm=[0, 1, 3, 2]))
    masked = g("Add", g("Mul", scores, np.float32(columns**-0.5)), "mask")
    g("MatMul", g("Softmax", masked, axis=-1), "v")
    return g


def _norms() -> Graph:
    g = Graph(x=("float32", "m", 192))
    weight, bias = 1 + normal(192) / 8, normal(192)
    g("LayerNormalization", "x", weight, bias, axis=-1)
    square = g("ReduceMean", g("Mul", "x", "x"), axes=[-1])
    root = g("Sqrt", g("Add", square, np.float32(1e-5)))
    g("Mul", g("Div", "x", root), weight)
    g("Softmax", "x", axis=-1)
    return g


def _norm_packs() -> Graph:
    """A sum and its norm, packed for two products."""
    g = Graph(x=("float32", "m", 256), r=("float32", "m", 256))
    total = g("Add", "x", "r")
    row = g("LayerNormalization", total, 1 + normal(256) / 8, normal(256), axis=-1)
    g("MatMul", row, normal(256, 64))
    g("MatMul", row, normal(256, 96))
    g("Neg", total)
    return g


def _gated_packs() -> Graph:
    """A feed-forward part whose rows are long enough for several blocks."""
    g = Graph(x=("float32", "m", 32))
    gate = g("MatMul", "x", normal(32, 4096))
    gated = g("Mul", gate, g("Sigmoid", gate))
    g("MatMul", g("Mul", gated, g("MatMul", "x", normal(32, 4096))), normal(4096, 16))
    return g


def _lines() -> Graph:
    g = Graph(x=("float32", "n", "m"))
    g("CumSum", "x", np.array(1))
    g("CumSum", "x", np.array(0), reverse=1)
    g("TopK", "x", np.array([5]), results=2, axis=1)
    g("ArgMax", "x", axis=1)
    g("ArgMin", "x", axis=1)
    return g


def _embedding() -> Graph:
    g = Graph(i=("int64", "n"))
    g("Gather", normal(300, 64), "i", axis=0)
    return g


def _copies() -> Graph:
    """Parts, turned and joined."""
    g = Graph(x=("float32", "a", "b", 8))
    turned = g("Transpose", "x", perm=[2, 0, 1])
    part = g("Slice", turned, *map(np.array, ([1], [8], [0], [2])))
    g("Concat", part, turned, axis=0)
    return g


def _updates(count: int) -> Feeds:
    return {
        "x": normal(30, 8),
        "i": integers(count, 8, low=0, high=30),
        "u": normal(count, 8),
        "p": np.random.RandomState(count).permutation(30)[: min(count, 30), None],
        "w": normal(min(count, 30), 8),
    }


def _scatters() -> Graph:
    g = Graph(
        18,
        x=("float32", 30, 8),
        i=("int64", "n", 8),
        u=("float32", "n", 8),
        p=("int64", "k", 1),
        w=("float32", "k", 8),
    )
    g("ScatterElements", "x", "i", "u", axis=0, reduction="add")
    g("ScatterElements", "x", "i", "u", axis=0, reduction="max")
    g("ScatterND", "x", "p", "w")
    return g
