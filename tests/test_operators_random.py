"""Random graphs against onnxruntime: what fusion, broadcasts and shared kernels could get wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from operator_graph import Feeds, Graph, normal

Shape = tuple[int | str, ...]
Value = tuple[str, Shape]
Step = Callable[["Growing", str, Shape], Value | None]
STEPS: list[Step] = []


def step(function: Step) -> Step:
    STEPS.append(function)
    return function


class Growing:
    """A graph that grows by random operators; their operands come from `values`."""

    def __init__(self, seed: int, size: int = 18) -> None:
        x = ("float32", "n", "m", 4)
        self.graph = Graph(x=x, y=x, z=x[:1] + x[2:])
        self.values: list[Value] = [("x", x[1:]), ("y", x[1:]), ("z", x[2:])]
        self.random = random.Random(seed)
        while len(self.graph.nodes) < size:
            name, shape = self.random.choice(self.values)
            made = self.random.choice(STEPS)(self, name, shape)
            if made is not None:
                self.values.append(made)
        self.graph.outputs = self._outputs()

    def _outputs(self) -> list[str]:
        """What nothing reads, and some of what is read too."""
        names = [name for name, _ in self.values[3:]]
        read = {name for node in self.graph.nodes for name in node.input}
        kept = {name for name in names if name not in read} | set(self.random.sample(names, 4))
        return [name for name in names if name in kept]

    def axis(self, shape: Shape) -> int:
        return self.random.randrange(len(shape))

    def same_shape(self, shape: Shape) -> str:
        return self.random.choice([name for name, other in self.values if other == shape])

    def broadcastable(self, shape: Shape) -> str:
        """A value of this shape, of its last axes, or with ones in it."""

        def fits(other: Shape) -> bool:
            ones = len(other) == len(shape) and all(
                a == b or a == 1 for a, b in zip(other, shape, strict=True)
            )
            return other == shape[1:] or ones

        return self.random.choice([name for name, other in self.values if fits(other)])


@step
def unary(g: Growing, a: str, shape: Shape) -> Value:
    op = g.random.choice(["Tanh", "Sigmoid", "Relu", "Abs", "Neg", "Erf"])
    return g.graph(op, a), shape


@step
def clip(g: Growing, a: str, shape: Shape) -> Value:
    return g.graph("Clip", a, np.float32(-0.5), np.float32(0.7)), shape


@step
def binary(g: Growing, a: str, shape: Shape) -> Value:
    operands = [a, g.broadcastable(shape)]
    g.random.shuffle(operands)
    return g.graph(g.random.choice(["Add", "Sub", "Mul", "Max", "Min"]), *operands), shape


@step
def where(g: Growing, a: str, shape: Shape) -> Value:
    b = g.same_shape(shape)
    return g.graph("Where", g.graph("Less", a, b), a, b), shape


@step
def reduction(g: Growing, a: str, shape: Shape) -> Value | None:
    if not shape:
        return None
    axis, keepdims = g.axis(shape), g.random.randrange(2)
    op = g.random.choice(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"])
    kept: Shape = (1,) if keepdims else ()
    result = shape[:axis] + kept + shape[axis + 1 :]
    return g.graph(op, a, axes=[axis], keepdims=keepdims), result


@step
def softmax(g: Growing, a: str, shape: Shape) -> Value | None:
    return (g.graph("Softmax", a, axis=g.axis(shape)), shape) if shape else None


@step
def cumulative_sum(g: Growing, a: str, shape: Shape) -> Value | None:
    return (g.graph("CumSum", a, np.array(g.axis(shape))), shape) if shape else None


@step
def transpose(g: Growing, a: str, shape: Shape) -> Value | None:
    if len(shape) < 2:
        return None
    perm = g.random.sample(range(len(shape)), len(shape))
    return g.graph("Transpose", a, perm=perm), tuple(shape[i] for i in perm)


@step
def concat(g: Growing, a: str, shape: Shape) -> Value | None:
    static = [i for i, size in enumerate(shape) if isinstance(size, int)]
    if not static:
        return None
    axis = g.random.choice(static)
    size = shape[axis]
    assert isinstance(size, int)
    result = (*shape[:axis], 2 * size, *shape[axis + 1 :])
    return g.graph("Concat", a, g.same_shape(shape), axis=axis), result


@step
def cut(g: Growing, a: str, shape: Shape) -> Value | None:
    if not shape or not isinstance(shape[-1], int) or shape[-1] < 4:
        return None
    start, stride, end = g.random.randrange(2), g.random.choice([1, 2]), shape[-1] - 1
    values = map(np.array, ([start], [end], [-1], [stride]))
    return g.graph("Slice", a, *values), (*shape[:-1], len(range(start, end, stride)))


@step
def split_last_axis(g: Growing, a: str, shape: Shape) -> Value | None:
    if len(shape) != 3 or not isinstance(shape[2], int) or shape[2] % 2:
        return None
    return g.graph("Reshape", a, np.array([0, 0, 2, shape[2] // 2])), (*shape[:2], 2, shape[2] // 2)


@step
def matmul(g: Growing, a: str, shape: Shape) -> Value | None:
    if len(shape) < 2 or not isinstance(shape[-1], int):
        return None
    return g.graph("MatMul", a, normal(shape[-1], 4)), (*shape[:-1], 4)


def feeds(n: int, m: int) -> Feeds:
    return {"x": normal(n, m, 4), "y": normal(n, m, 4, seed=1), "z": normal(m, 4, seed=2)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed: int, tmp_path: Path) -> None:
    graph = Growing(seed).graph
    graph.check(tmp_path, feeds(3, 5), feeds(1, 1), feeds(2, 70), tolerance=5e-5)
