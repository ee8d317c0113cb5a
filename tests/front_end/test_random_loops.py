"""Random bodies of loops and branches, within each other, give onnxruntime's numbers.

Fixed seeds; `ABQC_LOOP_SEEDS=100-120` takes others.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from front_end.support import check, model_of

CONSTANTS = """float[4] row = {0.5, -1, 0.25, 1}, float[4,4] w = {0.1, 0.2, 0.3, 0.4, -0.5, 0.6,
0.7, -0.8, 0.9, 1, -1.1, 1.2, 1.3, -1.4, 1.5, 1.6}, int64 zero = {0}, int64 one = {1},
int64 two = {2}, int64 four = {4}, float limit = {1}, bool true = {1}, int64[1] axis = {1},
int64[1] begin = {2}, int64[1] end = {6}"""

# `o` of `x`, [rows, 4], and the number `k`; other names are made from `o`.
STEPS = (
    "{o} = Tanh({x})",
    "{o} = Mul({x}, row)",
    "{o} = MatMul({x}, w)",
    "{o} = Softmax <axis = 1> ({x})",
    "{o} = CumSum({x}, one)",
    "{o}a = Concat <axis = 1> ({x}, {x})  {o} = Slice({o}a, begin, end, axis)",
    "{o}a = Less({k}, two)  {o}b = Neg({x})  {o} = Where({o}a, {x}, {o}b)",
    "{o}a = Mod({k}, four)  {o}b = Gather <axis = 1> ({x}, {o}a)  {o}c = Unsqueeze({o}b, axis)"
    "  {o} = Add({x}, {o}c)",
    "{o}a = Cast <to = 1> ({k})  {o} = Add({x}, {o}a)",
    "{o}s = Shape({x})  {o}e = Expand(row, {o}s)  {o} = Add({o}e, {x})",
)
CONDITIONS = (
    "{o}a = Less({k}, two)",  # of numbers
    "{o}m = ReduceMax <keepdims = 0> ({x})  {o}a = Less({o}m, limit)",  # of data
)


class Writer:
    """Writes random graphs in ONNX's textual syntax."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def chain(self, x: str, k: str, length: int, depth: int = 0) -> tuple[str, str]:
        """Nodes that compute something of `x`, and the name of what they compute."""
        text = []
        for _ in range(length):
            o, kind = self.fresh(), self.random.random()
            if depth < 2 and kind < 0.15:
                text.append(self.branches(o, x, k, depth))
            elif depth < 2 and kind < 0.3:
                text.append(self.loop(o, x, k, depth))
            else:
                text.append(self.random.choice(STEPS).format(o=o, x=x, k=k))
            x = o
        return "  ".join(text), x

    def branches(self, o: str, x: str, k: str, depth: int) -> str:
        then, a = self.chain(x, k, self.random.randint(0, 2), depth + 1)
        other, b = self.chain(x, k, 1, depth + 1)
        return f"""{self.random.choice(CONDITIONS).format(o=o, x=x, k=k)}  {o} = If ({o}a) <
          then_branch = {o}then () => (float[r,4] {o}p) {{ {then}  {o}p = Identity({a}) }},
          else_branch = {o}else () => (float[r,4] {o}q) {{ {other}  {o}q = Neg({b}) }}>"""

    def loop(self, o: str, x: str, k: str, depth: int) -> str:
        nodes, y = self.chain(f"{o}x", f"{o}k", 2, depth + 1)
        return f"""{o} = Loop (two, true, {x}) <
          body = {o}body (int64 {o}i, bool {o}c, float[r,4] {o}x) => (bool {o}d, float[r,4] {o}y)
          {{ {o}d = Identity({o}c)  {o}k = Add({o}i, {k})  {nodes}  {o}y = Identity({y}) }}>"""

    def model(self, loops: int) -> str:
        """Loops that are counted, that end early, or whose value grows."""
        outputs, text = [], []
        for n in range(loops):
            kind = self.random.choice(("counted", "early", "grows"))
            nodes, y = self.chain(f"x{n}", f"k{n}", 3)
            go_on = f"d{n} = Less(k{n}, two)" if kind == "early" else f"d{n} = Identity(c{n})"
            last = f"Concat <axis = 0> ({y}, x)" if kind == "grows" else f"Tanh({y})"
            outputs += [f"float[a{n},4] out{n}", f"int64 count{n}"]
            taken = f"int64 i{n}, bool c{n}, float[r,4] x{n}, int64 k{n}"
            given = f"bool d{n}, float[r,4] y{n}, int64 l{n}"
            results = f"out{n}, count{n}"
            if kind != "grows":  # rows of one size
                outputs.append(f"float[m{n},s{n},4] rows{n}")
                given, results = f"{given}, float[r,4] z{n}", f"{results}, rows{n}"
                last = f"{last}  z{n} = Identity({y})"
            text.append(f"""{results} = Loop (n, true, x, zero) <
              body = body{n} ({taken}) => ({given}) {{
              {go_on}  {nodes}  y{n} = {last}  l{n} = Add(k{n}, one) }}>""")
        joined = "\n".join(text)
        return f"g (float[b,4] x, int64 n) => ({', '.join(outputs)}) <{CONSTANTS}> {{ {joined} }}"


def seeds() -> list[int]:
    first, _, last = os.environ.get("ABQC_LOOP_SEEDS", "0-1").partition("-")
    return list(range(int(first), int(last or first) + 1))


@pytest.mark.parametrize("seed", seeds())
def test_random_loops(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    feeds = [
        {"x": rng.normal(size=(b, 4)).astype(np.float32), "n": np.array(n)}
        for b, n in ((3, 4), (1, 1), (2, 5))
    ]
    check(model_of(Writer(seed).model(3)), feeds, tmp_path, 1e-3)
