"""Random operators: distributions, and the same numbers for the same seed."""

from __future__ import annotations

import warnings
from pathlib import Path

import abqc
import numpy as np
import onnx
from front_end.support import model_of

TEXT = """g (float[b,1000] x, float[b,4] w, bool t, float r, int64 n)
  => (float[200,1000] u, float[b,1000] nn, double[b,1000] n64, float[b,1000] be, int32[b,s] mu,
      float[b,1000] d, bool[b,1000] dm, float[n,3] loop, float[200,1000] again) <bool c = {1}> {
  u = RandomUniform <shape = [200, 1000], low = -1.0, high = 3.0, seed = 4.0> ()
  again = RandomUniform <shape = [200, 1000], low = -1.0, high = 3.0, seed = 4.0> ()
  nn = RandomNormalLike <mean = 2.0, scale = 3.0> (x)
  n64 = RandomNormalLike <dtype = 11> (x)
  be = Bernoulli <seed = 1.0> (x)
  mu = Multinomial <sample_size = 20000> (w)
  d, dm = Dropout <seed = 5> (x, r, t)
  loop = Loop (n, c) <
    body = body (int64 i, bool ci) => (bool co, float[3] q) {
      co = Identity(ci)  q = RandomUniform <shape = [3]> () }>
}"""


def test_distributions(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(model_of(TEXT), source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = abqc.compile(source)
    assert any("no attribute 'seed'" in str(warning.message) for warning in caught)
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], np.float32)
    x = np.random.default_rng(0).random((2, 1000)).astype(np.float32)
    feeds = {
        "x": x, "w": np.log(probabilities), "t": np.array(True),
        "r": np.array(0.25, np.float32), "n": np.array(4),
    }  # fmt: skip
    u, nn, n64, be, mu, d, dm, loop, again = model.run(feeds)
    assert u.min() >= -1 and u.max() < 3 and abs(u.mean() - 1) < 0.02
    assert abs(u.std() - 4 / 12**0.5) < 0.01 and len(np.unique(u)) > 0.98 * u.size
    assert np.array_equal(u, again)  # equal seeds
    assert abs(nn.mean() - 2) < 0.2 and abs(nn.std() - 3) < 0.2
    assert abs(n64.mean()) < 0.1 and abs(n64.std() - 1) < 0.1
    assert set(np.unique(be)) == {0, 1} and np.corrcoef(be.ravel(), x.ravel())[0, 1] > 0.5
    drawn = np.stack([np.bincount(row, minlength=4) / row.size for row in mu])
    np.testing.assert_allclose(drawn, probabilities, atol=0.02)
    assert abs(dm.mean() - 0.75) < 0.04
    np.testing.assert_allclose(d, np.where(dm, x / 0.75, 0), rtol=1e-6)
    assert len(np.unique(loop)) == loop.size  # each iteration has its own
    for first, second in zip(model.run(feeds), model.run(feeds), strict=True):
        assert np.array_equal(first, second)
    kept = model.run({**feeds, "t": np.array(False)})
    assert np.array_equal(kept[5], x) and kept[6].all()
