"""The abq dialect: its verifier, its effects, its bytecode."""

from __future__ import annotations

import io
import sys

import pytest
from abqc.dialects.context import make_context
from abqc.dialects.mlir import PassManager, ir

SEGMENTS = "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>"
CODE = '!abq.code<"w4:g128:sym">'


def matmul(x: str = "?x8xf32", w: str = "5x8xf32", y: str = "?x5xf32") -> str:
    return f"""func.func @main(%x: tensor<{x}>, %w: tensor<{w}>) -> tensor<{y}> {{
      %y = "abq.matmul"(%x, %w) {{node = "mm", {SEGMENTS}}}
          : (tensor<{x}>, tensor<{w}>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""


def conv(
    x: str = "?x4x8x8xf32", w: str = "6x2x3x3xf32", y: str = "?x6x6x6xf32", groups: int = 2,
    strides: str = "1, 1",
) -> str:  # fmt: skip
    return f"""func.func @main(%x: tensor<{x}>, %w: tensor<{w}>) -> tensor<{y}> {{
      %y = "abq.conv"(%x, %w) {{node = "c", strides = array<i64: {strides}>,
          dilations = array<i64: 1, 1>, pads = array<i64: 0, 0, 0, 0>, groups = {groups} : i64,
          {SEGMENTS}}} : (tensor<{x}>, tensor<{w}>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""


def gather(table: str = "50x8xf32", y: str = "?x8xf32") -> str:
    return f"""func.func @main(%t: tensor<{table}>, %i: tensor<?xi64>) -> tensor<{y}> {{
      %y = "abq.gather"(%t, %i) {{node = "g", operandSegmentSizes = array<i32: 1, 1, 0, 0>}}
          : (tensor<{table}>, tensor<?xi64>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""


def batch_matmul(a: str = "?x3x8xf32", c: str = "?x8x5xf32", transposed: int = 0) -> str:
    return f"""func.func @main(%a: tensor<{a}>, %c: tensor<{c}>) -> tensor<?x3x5xf32> {{
      %y = "abq.batch_matmul"(%a, %c) {{transposed = {transposed} : i64}}
          : (tensor<{a}>, tensor<{c}>) -> tensor<?x3x5xf32>
      return %y : tensor<?x3x5xf32>
    }}"""


def attention(v: str = "?x2x?x5xf32", kind: str = "none", flags: str = "0, 0, 0, 0") -> str:
    q, k, y = "?x4x?x8xf32", "?x2x?x8xf32", "?x4x?x5xf32"
    return f"""func.func @main(%q: tensor<{q}>, %k: tensor<{k}>, %v: tensor<{v}>) -> tensor<{y}> {{
      %y = "abq.attention"(%q, %k, %v) {{scale = 0.5 : f32, rows_first = array<i64: {flags}>,
          mask_kind = "{kind}", mask_map = affine_map<(d0, d1, d2, d3) -> ()>, guarded = 0 : i64,
          operandSegmentSizes = array<i32: 1, 1, 1, 0>}}
          : (tensor<{q}>, tensor<{k}>, tensor<{v}>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""


def norm(kind: str = "rms", weight: str = "24xf32", columns: str = "24") -> str:
    x = f"?x{columns}xf32"
    return f"""func.func @main(%x: tensor<{x}>, %w: tensor<{weight}>) -> tensor<{x}> {{
      %y, %s = "abq.norm"(%x, %w) {{kind = "{kind}", epsilon = 1.0e-5 : f32,
          operandSegmentSizes = array<i32: 1, 0, 1, 0>}}
          : (tensor<{x}>, tensor<{weight}>) -> (tensor<{x}>, tensor<{x}>)
      return %y : tensor<{x}>
    }}"""


def norm_pack(
    kernels: str = '"a", "b"', q: str = '?x32x!abq.packed<"a">', columns: str = "24"
) -> str:
    x = f"?x{columns}xf32"
    other = '?x48x!abq.packed<"b">'
    return f"""func.func @main(%x: tensor<{x}>) -> tensor<{q}> {{
      %y, %s, %a, %b = "abq.norm_pack"(%x) {{kind = "rms", epsilon = 1.0e-5 : f32,
          kernels = [{kernels}], operandSegmentSizes = array<i32: 1, 0, 0, 0>,
          resultSegmentSizes = array<i32: 1, 1, 1, 1, 0>}}
          : (tensor<{x}>) -> (tensor<{x}>, tensor<{x}>, tensor<{q}>, tensor<{other}>)
      return %a : tensor<{q}>
    }}"""


def hadamard(block: int) -> str:
    return f"""func.func @main(%x: tensor<?x24xf32>) -> tensor<?x24xf32> {{
      %y = "abq.hadamard"(%x) {{block = {block} : i64}} : (tensor<?x24xf32>) -> tensor<?x24xf32>
      return %y : tensor<?x24xf32>
    }}"""


VALID = (
    matmul(),
    matmul(x="2x?x8xf32", y="2x?x5xf32"),
    conv(),
    gather(),
    batch_matmul(),
    batch_matmul(c="?x5x8xf32", transposed=1),
    attention(),
    norm(),
    norm_pack(),
    hadamard(12),
)
INVALID = (
    (norm_pack(kernels='"a"'), "a kernel for each packed result"),
    (norm_pack(q="?x24xf32"), "packs are packed bytes"),
    (norm_pack(q='5x2x32x!abq.packed<"a">'), "packs and x have one rank"),
    (norm_pack(columns="?"), "rows have a static length"),
    (matmul(x="?x7xf32"), "has K ="),
    (matmul(y="?x6xf32"), "y must be"),
    (matmul(w="5x8x1xf32"), "w must be N x K"),
    (matmul(w=f"5x8x{CODE}"), "w_scale belongs to a w of codes"),
    (matmul(x=f"?x8x{CODE}"), "x_scale belongs to an x of codes"),
    (matmul().replace('node = "mm", ', ""), "node"),
    (conv(groups=1), "channels"),
    (conv(strides="1"), "strides: 2 values"),
    (conv(w="5x2x3x3xf32"), "5 output channels in 2 groups"),
    (gather(y="?x9xf32"), "columns"),
    (gather(table=f"50x8x{CODE}"), "scale belongs to a table of codes"),
    (batch_matmul(transposed=1), "a has K = 8, c has K = 5"),
    (batch_matmul(a="?x4x8xf32"), "y must be B x M x N"),
    (attention(v="?x3x?x5xf32"), "k and v differ"),
    (attention(v="?x2x?x6xf32"), "y must be B x H x M x E"),
    (attention(flags="0, 0"), "rows_first: q, k, v and y"),
    (attention(kind="add"), "mask belongs to a mask_kind"),
    (attention(kind="or"), "no mask_kind 'or'"),
    (norm(kind="group"), "no kind 'group'"),
    (norm(weight="23xf32"), "weight and bias have 24 elements"),
    (norm(columns="?"), "rows have a static length"),
    (hadamard(7), "no multiple of block 7"),
)


def verified(text: str) -> None:
    with make_context():
        ir.Module.parse(text).operation.verify()


@pytest.mark.parametrize("text", VALID)
def test_verifier_accepts(text: str) -> None:
    verified(text)


@pytest.mark.parametrize(("text", "rule"), INVALID, ids=[rule for _, rule in INVALID])
def test_verifier_rejects(text: str, rule: str) -> None:
    with pytest.raises(ir.MLIRError) as caught:
        verified(text)
    assert rule in str(caught.value)


def operations(text: str, passes: str) -> list[str]:
    names: list[str] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        names.append(op.name)
        return ir.WalkResult.ADVANCE

    with make_context():
        module = ir.Module.parse(text)
        PassManager.parse(f"builtin.module({passes})").run(module.operation)
        module.operation.walk(visit)
    return names


TWICE = """func.func @main(%x: tensor<?x24xf32>) -> tensor<?x24xf32> {
  %w = "abq.weight"() {sym = "w"} : () -> tensor<24xf32>
  %dead = "abq.hadamard"(%x) {block = 8 : i64} : (tensor<?x24xf32>) -> tensor<?x24xf32>
  %a = "abq.hadamard"(%x) {block = 12 : i64} : (tensor<?x24xf32>) -> tensor<?x24xf32>
  %b = "abq.hadamard"(%x) {block = 12 : i64} : (tensor<?x24xf32>) -> tensor<?x24xf32>
  %s = arith.addf %a, %b : tensor<?x24xf32>
  %kept = "abq.append"(%s) {input = 0 : i64, output = 0 : i64, axis = 0 : i64,
      operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x24xf32>) -> tensor<?x24xf32>
  return %s : tensor<?x24xf32>
}"""


def test_dead_and_equal_operations_go_but_appends_stay() -> None:
    names = operations(TWICE, "canonicalize,cse")
    assert names.count("abq.hadamard") == 1
    assert names.count("abq.weight") == 0
    assert names.count("abq.append") == 1


@pytest.mark.parametrize("text", VALID)
def test_bytecode_keeps_everything(text: str) -> None:
    with make_context():
        module = ir.Module.parse(text)
        before = module.operation.get_asm()
        stream = io.BytesIO()
        module.operation.write_bytecode(stream)
    with make_context():
        assert ir.Module.parse(stream.getvalue()).operation.get_asm() == before


def test_types_print_and_parse() -> None:
    with make_context():
        for text in (CODE, '!abq.packed<"int8">', f"tensor<5x8x{CODE}>"):
            assert str(ir.Type.parse(text)) == text


def test_the_bindings_import_a_module_for_the_dialect_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they find none they try again at every operation, which takes most of a compile."""
    tried: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            tried.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with make_context():
        for _ in range(3):
            module = ir.Module.parse(matmul())
            function = module.body.operations[0]
            assert type(function.regions[0].blocks[0].operations[0]).__name__ == "MatmulOp"
    assert tried.count("abqc.dialects.bindings.abq") <= 1
    assert "torch_mlir.dialects.abq" not in tried


def cache(format: str = "kv4", rows: str = "?x3x12xi8", y: str = "?x3x16xf32") -> str:
    return f"""func.func @main(%x: tensor<{rows}>) -> tensor<{y}> {{
      %y = "abq.dequantize_cache"(%x) {{format = "{format}"}} : (tensor<{rows}>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (cache(), None),
        (cache("kv9"), "a cache has 2 to 8 bits"),
        (cache("kv8"), "rows of 16 elements in kv8 are 20 bytes"),
        (cache("kv4:g16", y="?x3x40xf32"), "groups of 16 do not divide"),
        (cache(y="?x3x?xf32"), "rows of caches have a static length"),
        (cache(y="?x3x16xf16"), "f32"),
        (cache(rows="?x3x12xf32"), "encoded rows are bytes"),
    ],
)
def test_rows_of_caches(text: str, complaint: str | None) -> None:
    with make_context():
        if complaint is None:
            ir.Module.parse(text)
            return
        with pytest.raises(ir.MLIRError, match=complaint):
            ir.Module.parse(text)


def permuted(order: str = "1, 0, 0, 1", axis: int = 0, group: int = 2) -> str:
    return f"""func.func @main(%x: tensor<?x3x2xf32>) -> tensor<?x3x2xf32> {{
      %y = "abq.permute_channels"(%x) {{order = array<i64: {order}>, axis = {axis} : i64,
          group = {group} : i64}} : (tensor<?x3x2xf32>) -> tensor<?x3x2xf32>
      return %y : tensor<?x3x2xf32>
    }}"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (permuted(), None),
        (permuted(axis=2), "no axis 2 of heads"),
        (permuted(group=0), "one head at least"),
        (permuted("1, 0, 0"), "orders are of 2 channels"),
        (permuted("1, 1"), "every channel once"),
    ],
)
def test_orders_of_channels(text: str, complaint: str | None) -> None:
    with make_context():
        if complaint is None:
            ir.Module.parse(text)
            return
        with pytest.raises(ir.MLIRError, match=complaint):
            ir.Module.parse(text)
