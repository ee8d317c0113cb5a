"""Independent loops become one kernel."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.passes.kernels.launch import WITH_NEXT
from abqc.runtime.ptx import run_kernel
from facts import Facts, after

BUFFER = "memref<?xf32>"


def loop(source: str, target: str, op: str = "negf %a", type_: str = BUFFER) -> str:
    return f"""linalg.generic {{indexing_maps = [affine_map<(i) -> (i)>, affine_map<(i) -> (i)>],
        iterator_types = ["parallel"]}} ins(%{source} : {type_}) outs(%{target} : {type_}) {{
      ^bb0(%a: f32, %o: f32):
        %m = arith.{op} : f32
        linalg.yield %m : f32
      }}
    """


def main(*body: str) -> str:
    """With inputs %x and %y and buffers %p, %q, %r and %s."""
    names = "pqrs"
    return f"""func.func private @kernel({BUFFER}, {BUFFER}) attributes {{abq.kernel}}
    func.func @main(%x: {BUFFER}, %y: {BUFFER}, %n: index) {{
      %zero = arith.constant 0.0 : f32
      {"".join(f"%{name} = memref.alloc(%n) : {BUFFER}" + chr(10) for name in names)}
      {"".join(body)}
      return
    }}"""


def launch(first: str, second: str) -> str:
    return f"func.call @kernel(%{first}, %{second}) : ({BUFFER}, {BUFFER}) -> ()\n"


def groups(*body: str) -> list[int]:
    """How many loops each kernel has."""
    sizes = [0]
    for op in after(main(*body), "merge-loops")("linalg.generic"):
        sizes[-1] += 1
        if WITH_NEXT not in op.attributes:
            sizes.append(0)
    return sizes[:-1]


def test_independent_loops_are_merged() -> None:
    """With a view and a launch between them that have nothing to do with them."""
    between = f"%v = memref.cast %x : {BUFFER} to memref<8xf32>\n" + launch("s", "s")
    assert groups(loop("x", "p"), between, loop("y", "q"), loop("x", "r")) == [3]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ((loop("x", "p"), loop("p", "q")), [1, 1]),
        ((loop("x", "p"), loop("y", "p")), [1, 1]),
        ((loop("p", "q"), loop("x", "p")), [1, 1]),
        ((loop("x", "p"), launch("p", "r"), loop("y", "q")), [1, 1]),
        ((loop("r", "p"), launch("x", "r"), loop("y", "q")), [1, 1]),
        ((loop("x", "p"), loop("p", "q"), loop("y", "r")), [1, 2]),
    ],
    ids=["reads", "writes twice", "overwrites", "launch reads", "launch writes", "some"],
)
def test_order_is_kept(body: tuple[str, ...], expected: list[int]) -> None:
    assert groups(*body) == expected


def test_at_most_four() -> None:
    assert groups(*(loop("x", name) for name in "pqrs"), loop("x", "y")) == [4, 1]


def test_one_kernel_does_what_several_would() -> None:
    """Of ragged sizes, in the PTX machine."""
    unit, static = Unit(), ["memref<300xf32>", "memref<5xf32>", "memref<513xf32>"]
    buffers = [f"%x{i}: {t}, %y{i}: {t}" for i, t in enumerate(static)]
    ops = ["negf %a", "addf %a, %a", "mulf %a, %a"]
    body = [loop(f"x{i}", f"y{i}", ops[i], t) for i, t in enumerate(static)]
    text = f"func.func @main({', '.join(buffers)}) {{ {''.join(body)} return }}"
    with make_context(), ir.Location.unknown():
        unit.outlined = ir.Module.parse("module {}")
        module = ir.Module.parse(text)
        run_pipeline(module.operation, ["merge-loops", "outline-gpu-kernels"], unit)
        host = Facts(module.operation.get_asm())
        ptx = compile_ptx(ir.Module.parse(unit.outlined_text), SM_80)
    ((name, shape),) = ptx.kernels.items()
    assert host.calls() == [name]
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal(n).astype(np.float32) for n in (300, 5, 513)]
    arguments: list[object] = []
    for x in xs:
        for array in (x, np.zeros_like(x)):
            arguments += [0, array, 0, len(x), 1]  # as the LLVM dialect expands a buffer
    grid = 2 + 1 + 3
    outputs = run_kernel(ptx.text, name, grid, shape.threads, [*arguments, 2, 3])
    made = [output for output in outputs if isinstance(output, np.ndarray)]
    for i, expected in enumerate((-xs[0], xs[1] + xs[1], xs[2] * xs[2])):
        np.testing.assert_array_equal(made[2 * i + 1], expected)
