"""If, Loop and Scan: what they carry, what they collect, how they end."""

from __future__ import annotations

import time
from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.onnx_import.importer import import_model
from abqc.errors import AbqcError
from front_end.support import check, model_of
from onnx import numpy_helper

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_branches_of_different_sizes(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, bool c) => (float[n,4] y, int64[k] s) {
          y, s = If (c) <
            then_branch = t () => (float[n,4] yt, int64[k] st) { yt = Relu(x)  st = Shape(x) },
            else_branch = e () => (float[m,4] ye, int64[k] se) {
              ye = Concat <axis = 0> (x, x)  q = Shape(x)  se = Add(q, q) }>
        }"""
    )
    feeds = [{"x": normal(n, 4), "c": np.array(c)} for n in (3, 1, 0) for c in (True, False)]
    check(model, feeds, tmp_path)


def test_condition_from_data_and_branches_that_return_what_is_outside(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, float t) => (float[n,4] y, float[n,4] z) <float limit = {0.5}> {
          c = Less(t, limit)
          y0, z = If (c) <
            then_branch = a () => (float[n,4] p, float[n,4] p2) { p = Identity(x) p2 = Neg(x) },
            else_branch = e () => (float[m,4] q, float[n,4] q2) { q = Neg(x) q2 = Identity(x) }>
          y = Add(y0, x)
        }"""
    )
    feeds = [{"x": normal(3, 4), "t": np.array(t, np.float32)} for t in (0.1, 0.9)]
    check(model, feeds, tmp_path)


def test_condition_of_sizes_decides_between_ranks(tmp_path: Path) -> None:
    text = """g (float[%s] x) => (float[n] y) <int64 one = {1}, int64[1] axes = {1}> {
        s = Shape(x)  d = Gather(s, one)  c = Equal(d, one)
        y = If (c) <
          then_branch = t () => (float[n] a) { a = Squeeze(x, axes) },
          else_branch = e () => (float[n,k] b) { b = Identity(x) }>
      }"""
    for shape in ("3,1", "n,k"):
        model = check(model_of(text % shape), [{"x": normal(3, 1)}], tmp_path)
    # The model declares the rank that the first branch has.
    with pytest.raises(AbqcError, match="compiled for sizes with which"):
        model.run({"x": normal(3, 2)})


def test_counted_loop_collects_rows(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[b,4] y, float[n,b,4] z) <bool c = {1}> {
          y, z = Loop (n, c, x) <
            body = t (int64 i, bool ci, float[b,4] a) => (bool co, float[b,4] ao, float[b,4] r) {
              co = Identity(ci)  t = Tanh(a)  i1 = Cast <to = 1> (i)  ao = Add(t, i1)
              r = Identity(ao) }>
        }"""
    )
    feeds = [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (1, 1), (0, 3), (2, 9))]
    check(model, feeds, tmp_path)


def test_loop_that_ends_early(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n, int64 k) => (float[b,4] y, int64 count, float[m,b,4] z)
        <bool c = {1}, int64 zero = {0}, int64 one = {1}> {
          y, count, z = Loop (n, c, x, zero) <
            body = t (int64 i, bool ci, float[b,4] a, int64 q)
              => (bool co, float[b,4] ao, int64 qo, float[b,4] r) {
              co = Less(i, k)  ao = Tanh(a)  qo = Add(q, one)  r = Neg(ao) }>
        }"""
    )
    feeds = [
        {"x": normal(2, 4), "n": np.array(n), "k": np.array(k)}
        for n, k in ((3, 9), (9, 3), (1, 0), (40, 30))
    ]
    check(model, feeds, tmp_path)


def test_carried_sizes_change(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[m,4] y, float[k,4] z) <bool c = {1}> {
          y, z = Loop (n, c, x, x) <
            body = t (int64 i, bool ci, float[p,4] a, float[q,4] d)
              => (bool co, float[r,4] ao, float[s,4] do) {
              co = Identity(ci)  ao = Concat <axis = 0> (a, x)  do = Tanh(a) }>
        }"""
    )
    feeds = [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (2, 0), (0, 3), (1, 7))]
    check(model, feeds, tmp_path)


def test_loops_and_branches_in_loops(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[b,4] y, int64 s, float[n,n,b,4] z)
        <int64 zero = {0}, int64 one = {1}, int64 limit = {3}, bool c = {1}> {
          y, s, z = Loop (n, c, x, zero) <
            body = t (int64 i, bool ci, float[b,4] a, int64 k)
              => (bool co, float[b,4] ao, int64 ko, float[n,b,4] r) {
              co = Identity(ci)
              ao, ko, r = Loop (n, c, a, k) <
                body = t2 (int64 j, bool cj, float[b,4] a2, int64 k2)
                  => (bool co2, float[b,4] a2o, int64 k2o, float[b,4] r2) {
                  k2o = Add(k2, one)  kf = Cast <to = 1> (k2o)  co2 = Identity(cj)
                  t = Tanh(a2)  cond = Less(k2o, limit)
                  a2o = If (cond) <
                    then_branch = tb () => (float[b,4] p) { p = Add(t, kf) },
                    else_branch = eb () => (float[b,4] q) { q = Sub(t, kf) }>
                  r2 = Neg(a2o) }> }>
        }"""
    )
    check(model, [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (1, 1))], tmp_path)


def test_memory_of_a_long_loop_is_bounded(tmp_path: Path) -> None:
    """Each iteration makes tensors of 1 MB; 4,000 of them would be 4 GB."""
    model = model_of(
        """g (float[k] x, int64 n) => (float[k] y) <bool c = {1}> {
          y = Loop (n, c, x) <
            body = t (int64 i, bool ci, float[k] a) => (bool co, float[k] ao) {
              co = Identity(ci)  t = Tanh(a)
              r = Concat <axis = 0> (t, t)  s = Shape(a)  z = Sub(s, s)  ao = Slice(r, z, s) }>
        }"""
    )
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    compiled = abqc.compile(source)
    before = _peak()
    compiled.run({"x": normal(1 << 18), "n": np.array(4000)})
    assert _peak() - before < 64 << 10  # KB


def test_loops_and_branches_on_a_gpu(tmp_path: Path) -> None:
    """Its host reads conditions of the device's memory."""
    model = model_of(
        """g (float[b,4] x, float limit) => (float[b,4] y, float[n,b,4] z) <bool c = {1}> {
          y, z = Loop (, c, x) <
            body = t (int64 i, bool ci, float[b,4] a) => (bool co, float[b,4] ao, float[b,4] r) {
              m = ReduceMax <keepdims = 0> (a)  co = Less(m, limit)  ao = Add(a, a)
              g = Less(limit, m)
              r = If (g) <
                then_branch = tb () => (float[b,4] p) { p = Neg(ao) },
                else_branch = eb () => (float[b,4] q) { q = Identity(a) }> }>
        }"""
    )
    feeds = [
        {"x": np.abs(normal(b, 4)), "limit": np.array(limit, np.float32)}
        for b, limit in ((3, 9), (1, 100))
    ]
    check(model, feeds, tmp_path, target="sm_80", device="ptx-vm")


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_captured_name_that_is_none(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b] x, bool c) => (float[b] y) {
          y = If (c) <
            then_branch = t () => (float[b] p) { hidden = Neg(x)  p = Relu(hidden) },
            else_branch = e () => (float[b] q) { q = Identity(x) }>
        }"""
    )
    model.graph.node[0].attribute[1].g.node[0].input[0] = "hidden"  # of the other branch
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    with pytest.raises(AbqcError, match="hidden"):
        abqc.compile(source)


def nested(depth: int) -> str:
    """Loops in loops, each of which changes the size of what it carries."""

    def body(level: int) -> str:
        if level == depth:
            return f"o{level} = Tanh(a{level})  u{level} = Add(s{level}, one)"
        return f"""o{level}, u{level} = Loop (n, c, a{level}, s{level}) <
          body = b{level} (int64 i{level}, bool ci{level}, float[z{level}] a{level + 1},
                           int64 s{level + 1})
            => (bool co{level}, float[w{level}] ao{level}, int64 so{level}) {{
            co{level} = Identity(ci{level})  {body(level + 1)}
            ao{level} = Concat <axis = 0> (o{level + 1}, a{level + 1})
            so{level} = Add(u{level + 1}, one) }}>"""

    return f"""g (float[b] a0, int64 n, int64 s0) => (float[q] y, int64 t)
      <bool c = {{1}}, int64 one = {{1}}> {{ {body(0)}  y = Identity(o0)  t = Identity(u0) }}"""


def test_deep_nesting_costs_no_exponential_time(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(model_of(nested(12)), source)
    begin = time.process_time()
    import_model(source, work_dir=tmp_path)
    assert time.process_time() - begin < 10


DECODER = """g (int64[b,s] ids, int64 n) => (int64[b,t] out, float[m,b,50] logits)
<bool c = {1}, int64[1] axis = {1}, int64[1] last = {-1}, int64[1] end = {9223372036854775807},
 int64 eos = {7}, float scale = {0.17}> {
  e = Gather(emb, ids)
  out, cache, logits = Loop (n, c, ids, e) <
    body = t (int64 i, bool ci, int64[b,q] a, float[b,q,32] kv)
      => (bool co, int64[b,q2] ao, float[b,q2,32] kvo, float[b,50] lg) {
      newest = Slice(a, last, end, axis)  x = Gather(emb, newest)
      ln = LayerNormalization(x, gamma)  q = MatMul(ln, wq)
      kt = Transpose <perm = [0, 2, 1]> (kv)  s0 = MatMul(q, kt)  s1 = Mul(s0, scale)
      p = Softmax(s1)  context = MatMul(p, kv)  h0 = Add(context, x)
      h1 = MatMul(h0, w1)  h2 = Gelu(h1)  h3 = MatMul(h2, w2)  h = Add(h3, h0)
      l0 = MatMul(h, wo)  lg = Squeeze(l0, axis)
      best = ArgMax <axis = 1> (lg)
      ao = Concat <axis = 1> (a, best)  kvo = Concat <axis = 1> (kv, h)
      top = ReduceMax <keepdims = 0> (best)  stop = Equal(top, eos)  co = Not(stop) }>
}"""


def decoder() -> onnx.ModelProto:
    """Greedy decoding with a cache that grows, as a generator writes it into a graph."""
    model = model_of(DECODER, 20)
    shapes = {"emb": (50, 32), "wq": (32, 32), "w1": (32, 64), "w2": (64, 32), "wo": (32, 50),
              "gamma": (32,)}  # fmt: skip
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = (rng.normal(size=shape) * 0.3).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_a_decoder_in_a_loop(tmp_path: Path) -> None:
    feeds = [
        {"ids": RNG.integers(0, 50, (b, s)), "n": np.array(n)}
        for b, s, n in ((2, 3, 5), (1, 1, 9), (1, 4, 1))
    ]
    check(decoder(), feeds, tmp_path)


def test_recipes_quantize_products_in_loops(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(decoder(), source)
    model = abqc.compile(source, quant="w8a8")
    assert len([op for op in model.manifest["ops"] if op["weight"] == "w8:channel:sym"]) == 4
    model.run({"ids": RNG.integers(0, 50, (2, 3)), "n": np.array(5)})


BODY = """g (float[b,4] x, int64 n) => (float[b,4] y) <bool c = {{1}}, int64[1] one = {{1}}> {{
  y = Loop (n, c, x) < body = t ({taken}) => ({returned}) {{ {nodes} }}> }}"""
TAKEN = "int64 i, bool ci, float[b,4] a"
SCAN = """g (float[b,4] x, float[4] s) => (float[4] y, float[b,4] z) {{
  y, z = Scan <num_scan_inputs = {count}, {more}
    body = t (float[4] p, float[4] q) => (float[4] r, float[4] w) {{ r = Add(p, q) w = Neg(q) }}>
    (s, x) }}"""
IF = """g (float[b] x, bool[{size}] c) => (float[b] y) {{
  y = If (c) <
    then_branch = t () => (float[b] p) {{ p = Neg(x) }},
    else_branch = e () => ({returned}) {{ {nodes} }}> }}"""

WRONG = {
    "too few values": (
        BODY.format(taken="int64 i, bool ci", returned="bool co", nodes="co = Identity(ci)"),
        "for 1 carried values",
    ),
    "another rank": (
        BODY.format(taken=TAKEN, returned="bool co, float[b] ao",
                    nodes="co = Identity(ci)  ao = ReduceSum <keepdims = 0> (a, one)"),
        "type and rank must stay",
    ),
    "another type": (
        BODY.format(taken=TAKEN, returned="bool co, int64[b,4] ao",
                    nodes="co = Identity(ci)  ao = Cast <to = 7> (a)"),
        "type and rank must stay",
    ),
    "no condition": (
        BODY.format(taken=TAKEN, returned="int64 co, float[b,4] ao",
                    nodes="co = Identity(i)  ao = Identity(a)"),
        "must be a bool",
    ),
    "a name of nobody": (
        BODY.format(taken=TAKEN, returned="bool co, float[b,4] ao",
                    nodes="co = Identity(ci)  ao = Identity(later)"),
        "'later'",
    ),
    "too many scanned": (SCAN.format(count=3, more=""), "scans 3 of 2"),
    "scanned axis": (SCAN.format(count=1, more="scan_input_axes = [5],"), "axis 5"),
    "directions": (SCAN.format(count=1, more="scan_input_directions = [1, 1],"), "2 integers"),
    "two conditions": (
        IF.format(size=2, returned="float[b] q", nodes="q = Relu(x)"), "must have one element"
    ),
    "types of branches": (
        IF.format(size=1, returned="int64[b] q", nodes="q = Cast <to = 7> (x)"),
        "different types",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_forms_are_refused(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    onnx.save(model_of(text), tmp_path / "model.onnx")
    with pytest.raises(AbqcError, match=message):
        import_model(tmp_path / "model.onnx", work_dir=tmp_path)
