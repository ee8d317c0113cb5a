from __future__ import annotations

from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes.infrastructure import Unit
from facts import Facts, after, maker

HEAD = """func.func @main(%rows: tensor<?x2x?x12xi8>, %a: tensor<?x?x{a}xf32>)
    -> tensor<?x?x{y}xf32> {{
  %x = "abq.dequantize_cache"(%rows) {{format = "kv4"}}
      : (tensor<?x2x?x12xi8>) -> tensor<?x2x?x16xf32>
"""
ROTATE = """%z = "abq.hadamard"(%x) {block = 16 : i64}
    : (tensor<?x2x?x16xf32>) -> tensor<?x2x?x16xf32>"""
COLLAPSE = """%c = tensor.collapse_shape %{0} [[0, 1], [2], [3]]
    : tensor<?x2x?x16xf32> into tensor<?x?x16xf32>"""


def product(
    transposed: int, *, rotated: bool = False, target: object = None, between: str = ""
) -> Facts:
    a, y = ("16", "?") if transposed else ("?", "16")
    body = HEAD.format(a=a, y=y) + (ROTATE if rotated else "") + between
    source = "s" if between else "z" if rotated else "x"
    text = f"""{body}
      {COLLAPSE.format(source)}
      %y = "abq.batch_matmul"(%a, %c) {{transposed = {transposed} : i64, group = 3 : index}}
          : (tensor<?x?x{a}xf32>, tensor<?x?x16xf32>) -> tensor<?x?x{y}xf32>
      return %y : tensor<?x?x{y}xf32>
    }}"""
    unit = Unit(target=target or CpuTarget())
    return after(text, "fuse-caches", "func.func(canonicalize)", unit=unit)


def test_products_read_rows_as_they_are_stored() -> None:
    for transposed in (0, 1):
        facts = product(transposed)
        assert not facts("abq.dequantize_cache")
        (op,) = facts("abq.batch_matmul")
        assert op.attributes["rows"].value == "kv4" and op.attributes["group"].value == 3
        assert str(op.operands[1].type) == "tensor<?x?x12xi8>"


def test_queries_are_rotated_in_place_of_keys() -> None:
    facts = product(1, rotated=True)
    (op,) = facts("abq.batch_matmul")
    assert [maker(operand) for operand in op.operands] == ["abq.hadamard", "tensor.collapse_shape"]
    assert len(facts("abq.hadamard")) == 1 and not facts("abq.dequantize_cache")


def test_results_are_rotated_in_place_of_values() -> None:
    facts = product(0, rotated=True)
    assert maker(facts("func.return")[0].operands[0]) == "abq.hadamard"
    (op,) = facts("abq.batch_matmul")
    assert maker(op.operands[0]) == "argument" and "rows" in op.attributes


def test_without_kernels_for_rows_only_the_rotation_moves() -> None:
    facts = product(1, rotated=True, target=CudaTarget.named("sm_80"))
    (op,) = facts("abq.batch_matmul")
    assert "rows" not in op.attributes and len(facts("abq.dequantize_cache")) == 1
    assert maker(op.operands[0]) == "abq.hadamard"


def test_the_first_rows_of_a_cache_are_read_as_they_are_stored() -> None:
    first = """\n%n = arith.constant 5 : index
      %s = tensor.extract_slice %z[0, 0, 0, 0] [%n, 2, %n, 16] [1, 1, 1, 1]
          : tensor<?x2x?x16xf32> to tensor<?x2x?x16xf32>"""
    facts = product(1, rotated=True, between=first)
    (op,), (part,) = facts("abq.batch_matmul"), facts("tensor.extract_slice")
    assert op.attributes["rows"].value == "kv4" and not facts("abq.dequantize_cache")
    assert list(part.attributes["static_sizes"])[-1] == 12


def test_parts_of_rows_are_decoded() -> None:
    part = """\n%n = arith.constant 5 : index
      %h = tensor.extract_slice %z[0, 0, 0, 0] [%n, 2, %n, 8] [1, 1, 1, 1]
          : tensor<?x2x?x16xf32> to tensor<?x2x?x8xf32>
      %s = tensor.concat dim(3) %h, %h
          : (tensor<?x2x?x8xf32>, tensor<?x2x?x8xf32>) -> tensor<?x2x?x16xf32>"""
    assert len(product(1, rotated=True, between=part)("abq.dequantize_cache")) == 1


def test_what_is_computed_between_stays() -> None:
    added = "\n%s = arith.addf %z, %z : tensor<?x2x?x16xf32>"
    facts = product(1, rotated=True, between=added)
    assert len(facts("abq.dequantize_cache")) == 1
    assert maker(facts("arith.addf")[0].operands[0]) == "abq.hadamard"


def attention(keys: str, values: str) -> Facts:
    text = f"""func.func @main(%q: tensor<1x2x?x16xf32>, %k: tensor<1x2x?x16xf32>,
        %rk: tensor<1x2x?x12xi8>, %rv: tensor<1x2x?x20xi8>) -> tensor<1x2x?x16xf32> {{
      %dk = "abq.dequantize_cache"(%rk) {{format = "kv4"}}
          : (tensor<1x2x?x12xi8>) -> tensor<1x2x?x16xf32>
      %hk = "abq.hadamard"(%dk) {{block = 16 : i64}}
          : (tensor<1x2x?x16xf32>) -> tensor<1x2x?x16xf32>
      %dv = "abq.dequantize_cache"(%rv) {{format = "kv8"}}
          : (tensor<1x2x?x20xi8>) -> tensor<1x2x?x16xf32>
      %hv = "abq.hadamard"(%dv) {{block = 16 : i64}}
          : (tensor<1x2x?x16xf32>) -> tensor<1x2x?x16xf32>
      %y = "abq.attention"(%q, {keys}, {values}) {{scale = 0.5 : f32,
          rows_first = array<i64: 0, 0, 0, 0>, mask_kind = "none",
          mask_map = affine_map<(d0, d1, d2, d3) -> ()>, guarded = 0 : i64,
          operandSegmentSizes = array<i32: 1, 1, 1, 0>}}
          : (tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>, tensor<1x2x?x16xf32>)
          -> tensor<1x2x?x16xf32>
      return %y : tensor<1x2x?x16xf32>
    }}"""
    unit = Unit(target=CudaTarget.named("sm_80"))
    return after(text, "fuse-caches", "func.func(canonicalize)", unit=unit)


def test_attention_reads_rows_of_both() -> None:
    facts = attention("%hk", "%hv")
    (op,) = facts("abq.attention")
    assert [text.value for text in op.attributes["rows"]] == ["kv4", "kv8"]
    assert [maker(o) for o in op.operands] == ["abq.hadamard", "argument", "argument"]
    assert maker(facts("func.return")[0].operands[0]) == "abq.hadamard"
    assert not facts("abq.dequantize_cache")


def test_attention_reads_rows_of_values_alone() -> None:
    facts = attention("%k", "%dv")
    (op,) = facts("abq.attention")
    assert [text.value for text in op.attributes["rows"]] == ["", "kv8"]
    assert not facts("abq.hadamard")


PERMUTE = """%z = "abq.permute_channels"(%x) {order = array<i64: {0}>, axis = 1 : i64,
    group = 1 : i64} : (tensor<?x2x?x16xf32>) -> tensor<?x2x?x16xf32>
"""
ORDER = [*range(1, 16), 0, *range(16)]  # of the first head and of the second


def sorted_product(transposed: int, collapse: str = COLLAPSE) -> Facts:
    a, y = ("16", "?") if transposed else ("?", "16")
    text = f"""{HEAD.format(a=a, y=y)}
      {PERMUTE.replace("{0}", ", ".join(map(str, ORDER)))}
      {collapse.format("z")}
      %y = "abq.batch_matmul"(%a, %c) {{transposed = {transposed} : i64, group = 3 : index}}
          : (tensor<?x?x{a}xf32>, tensor<?x?x16xf32>) -> tensor<?x?x{y}xf32>
      return %y : tensor<?x?x{y}xf32>
    }}"""
    return after(text, "fuse-caches", "func.func(canonicalize)", unit=Unit(target=CpuTarget()))


def test_queries_are_sorted_as_the_keys_of_their_head() -> None:
    (permute,) = sorted_product(1)("abq.permute_channels")
    assert list(permute.attributes["order"]) == [15, *range(15), *range(16)]
    assert (permute.attributes["axis"].value, permute.attributes["group"].value) == (0, 3)


def test_results_are_put_back() -> None:
    facts = sorted_product(0)
    (permute,) = facts("abq.permute_channels")
    assert maker(permute.operands[0]) == "abq.batch_matmul"
    assert list(permute.attributes["order"]) == ORDER and not facts("abq.dequantize_cache")


def test_heads_that_are_not_found_again_are_put_back_before() -> None:
    rows = "%c = tensor.collapse_shape %{0} [[0], [1, 2], [3]]\n    : tensor<?x2x?x16xf32>"
    facts = sorted_product(1, rows + " into tensor<?x?x16xf32>")
    assert len(facts("abq.dequantize_cache")) == 1 and "rows" not in str(facts.text)
