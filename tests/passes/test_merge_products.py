from abqc.codegen.strategy import Kernel
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.target import Target
from abqc.compiler.build import resolve_target
from abqc.passes.infrastructure import Unit
from abqc.passes.kernels.launch import WITH_NEXT
from facts import after

KERNELS = {
    name: Kernel(name, block, lambda module, isa: None)
    for name, block in {"one": (1, 64), "many": (128, 64), "wide": (1, 128)}.items()
}
CPU = CpuTarget()
ROWS = 'tensor<?x64x!abq.packed<"rows">>'
TEXT = """func.func @main(%q: {rows}, %p: {rows}, %r: tensor<?x96xf32>)
    -> (tensor<?x96xf32>, tensor<?x96xf32>, tensor<?x96xf32>) {{
  {body}
  return {results} : tensor<?x96xf32>, tensor<?x96xf32>, tensor<?x96xf32>
}}"""
TYPES = f'({ROWS}, tensor<64x!abq.packed<"int8">>)'


def product(name: str, x: str = "q", *, kernel: str = "one", limit: int = 1) -> str:
    return f"""%w{name} = "abq.weight"() {{sym = "{name}"}} : () -> tensor<64x!abq.packed<"int8">>
      %{name} = "abq.matmul"(%{x}, %w{name}) {{node = "{name}", kernels = ["{kernel}", "many"],
        max_rows = array<i64: {limit}, 0>, n = 96 : index, k = 64 : index,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}} : {TYPES} -> tensor<?x96xf32>
    """


def fused(name: str, first: str, read: str = "(m, n)", kernel: str = "one") -> str:
    """A product of %q whose epilogue multiplies by `first`."""
    return f"""%w{name} = "abq.weight"() {{sym = "{name}"}} : () -> tensor<64x!abq.packed<"int8">>
      %{name} = "abq.fused_matmul"(%q, %w{name}, {first}) ({{
      ^bb0(%in: f32, %other: f32):
        %z = arith.mulf %in, %other : f32
        "abq.yield"(%z) : (f32) -> ()
      }}) {{node = "{name}", kernels = ["{kernel}", "many"], max_rows = array<i64: 1, 0>,
        n = 96 : index, k = 64 : index, maps = [affine_map<(m, n) -> {read}>],
        operandSegmentSizes = array<i32: 1, 1, 0, 1, 0, 0, 0>}}
      : ({ROWS}, tensor<64x!abq.packed<"int8">>, tensor<?x96xf32>) -> tensor<?x96xf32>
    """


def twice(name: str, x: str) -> str:
    return f"""%{name} = linalg.add ins(%{x}, %{x} : tensor<?x96xf32>, tensor<?x96xf32>)
      outs(%r : tensor<?x96xf32>) -> tensor<?x96xf32>
    """


def groups(*parts: str, results: str = "%a, %b, %c", target: Target = CPU) -> list[list[str]]:
    """The nodes of each group, whose members must stand one behind the other."""
    text = TEXT.format(rows=ROWS, body="".join(parts), results=results)
    facts = after(text, "merge-products", unit=Unit(target=target, kernels=dict(KERNELS)))
    found: list[list[str]] = [[]]
    for op in facts.function().regions[0].blocks[0].operations:
        if "node" in op.operation.attributes:
            found[-1].append(op.operation.attributes["node"].value)
        else:
            assert len(found[-1]) == 0, "members stand one behind the other"
        if found[-1] and WITH_NEXT not in op.operation.attributes:
            found.append([])
    return [group for group in found if len(group) > 1]


def test_products_of_the_same_rows() -> None:
    """With loops over results between them, and another product of other rows."""
    parts = (product("a"), twice("d", "a"), product("b"), product("e", "p"), product("c"))
    assert groups(*parts, results="%d, %b, %c") == [["a", "b", "c"]]


def test_ranges_of_rows_must_agree() -> None:
    parts = product("a"), product("b", limit=4), product("c", kernel="wide")
    assert groups(*parts) == [["a", "c"]]


def test_an_epilogue_reads_another_product() -> None:
    assert groups(product("a"), fused("b", "%a"), product("c")) == [["a", "b", "c"]]


def test_one_kernel_needs_equal_blocks() -> None:
    parts = product("a"), fused("b", "%a", kernel="wide"), product("c")
    assert groups(*parts) == [["a", "c"]]


def test_what_an_epilogue_reads_must_be_there() -> None:
    """%d is made of the first product, by a loop."""
    parts = product("a"), twice("d", "a"), fused("b", "%d"), product("c")
    assert groups(*parts) == [["a", "c"]]
    assert groups(product("a"), product("c"), fused("b", "%r")) == [["a", "c", "b"]]


def test_on_a_gpu_kernels_must_be_equal() -> None:
    gpu = resolve_target("sm_80")
    parts = product("a"), product("b", kernel="wide"), product("c")
    assert groups(*parts, target=gpu) == [["a", "c"]]
