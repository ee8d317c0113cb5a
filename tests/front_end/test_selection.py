"""Elements chosen by their values, and sizes that depend on them."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from front_end.support import check, model_of

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


TOP = """g (float[n,m] x, int64[1] k, int64[n,m] i, uint8[n,m] u)
  => (float[n,a] v, int64[n,a] p, float[b,m] w, int64[b,m] q, int64[n,a] j, int64[n,a] r,
      uint8[n,a] uv, int64[n,a] up, int64[n] most, int64[1,m] least, float[n,m] hard) {
  v, p = TopK (x, k)
  w, q = TopK <axis = 0, largest = 0> (x, one)
  j, r = TopK (i, k)
  uv, up = TopK <largest = 0> (u, k)
  one = Constant <value = int64[1] {1}> ()
  most = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (i)
  least = ArgMin <axis = 0> (x)
  hard = Hardmax (x)
}"""


def test_order(tmp_path: Path) -> None:
    model = model_of(TOP.replace("  one = Constant <value = int64[1] {1}> ()\n", ""))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))

    def feeds(n: int, m: int, k: int) -> dict[str, np.ndarray]:
        return {
            "x": normal(n, m), "k": np.array([k]), "i": RNG.integers(0, 4, (n, m)),
            "u": RNG.integers(0, 256, (n, m)).astype(np.uint8),
        }  # fmt: skip

    compiled = check(
        model, [feeds(3, 200, 20), feeds(2, 5, 5), feeds(1, 1, 1), feeds(4, 9, 0)], tmp_path
    )
    with pytest.raises(abqc.errors.AbqcError, match="must be between 0 and"):
        compiled.run(feeds(2, 5, 6))


CHOSEN = """g (float[n,m] x, bool[k] c)
  => (int64[2,a] where_, float[n,b] columns, float[d] single) {
  where_ = NonZero (x)
  columns = Compress <axis = 1> (x, c)
  single = Compress (x, c)
}"""


def test_counts_of_chosen_elements(tmp_path: Path) -> None:
    def feeds(n: int, m: int, k: int) -> dict[str, np.ndarray]:
        return {"x": normal(n, m).round(), "c": RNG.random(k) < 0.5}

    check(model_of(CHOSEN), [feeds(3, 5, 5), feeds(1, 4, 2), feeds(2, 3, 0)], tmp_path)


UNIQUE = """g (float[n] x, int64[n,m] y)
  => (float[a] s, int64[a] sf, int64[n] si, int64[a] sc, float[b] u, int64[b] uf, int64[n] ui,
      int64[b] uc, int64[c,m] r, int64[c] rf, int64[n] ri, int64[c] rc) {
  s, sf, si, sc = Unique (x)
  u, uf, ui, uc = Unique <sorted = 0> (x)
  r, rf, ri, rc = Unique <axis = 0> (y)
}"""


def test_unique(tmp_path: Path) -> None:
    feeds = [
        {"x": RNG.integers(0, 4, n).astype(np.float32), "y": RNG.integers(0, 2, (n, m))}
        for n, m in ((17, 3), (1, 1), (6, 2))
    ]
    check(model_of(UNIQUE), feeds, tmp_path)


BOXES = """g (float[b,s,4] boxes, float[b,c,s] scores, int64[1] most, float[1] iou, float[1] low)
  => (int64[n,3] chosen, int64[m,3] all) {
  chosen = NonMaxSuppression (boxes, scores, most, iou, low)
  all = NonMaxSuppression <center_point_box = 1> (boxes, scores, most, iou)
}"""


def test_non_max_suppression(tmp_path: Path) -> None:
    def feeds(b: int, c: int, s: int, most: int) -> dict[str, np.ndarray]:
        return {
            "boxes": RNG.random((b, s, 4)).astype(np.float32),
            "scores": RNG.random((b, c, s)).astype(np.float32),
            "most": np.array([most]), "iou": np.array([0.2], np.float32),
            "low": np.array([0.3], np.float32),
        }  # fmt: skip

    many = [feeds(2, 3, 40, 5), feeds(1, 1, 100, 1000), feeds(1, 2, 5, 0)]
    check(model_of(BOXES), many, tmp_path)
