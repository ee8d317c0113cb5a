import pytest
from abqc.codegen.strategy import Kernel
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.build import resolve_target
from abqc.passes.infrastructure import Unit
from abqc.passes.loops.epilogues import inputs_of
from facts import Facts, after, maker

IMAGE = "tensor<?x8x?x?xf32>"
IDENTITY = "affine_map<(b, c, y, x) -> (b, c, y, x)>"


def conv(name: str) -> str:
    """A convolution of the argument %p, %h x %w."""
    return f"""%{name} = "abq.direct_conv"(%p, %k, %bias, %h, %w) ({{}}) {{
        groups = 1, window = array<i64: 3, 3>, strides = array<i64: 1, 1>,
        dilations = array<i64: 1, 1>, before = array<i64: 0, 0>, maps = [],
        operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0>}}
      : (tensor<?x4x?x?xf32>, tensor<288xf32>, tensor<8xf32>, index, index) -> {IMAGE}
    """


def loop(
    name: str,
    inputs: str,
    body: str,
    *,
    maps: tuple[str, ...] = (),
    types: tuple[str, ...] = (),
) -> str:
    """A loop over %a, %b, .. of the body; by default all inputs are read where the result is."""
    count = len(inputs.split(","))
    types = types or (IMAGE,) * count
    maps = (*(maps or (IDENTITY,) * count), IDENTITY)
    arguments = ", ".join(f"%{chr(ord('a') + i)}: f32" for i in range(count))
    return f"""%{name} = linalg.generic {{indexing_maps = [{", ".join(maps)}],
        iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins({inputs} : {", ".join(types)}) outs(%empty : {IMAGE}) {{
    ^bb0({arguments}, %out: f32):
      {body}
    }} -> {IMAGE}
    """


def fused(*parts: str, result: str = "%y") -> Facts:
    text = f"""func.func @main(%p: tensor<?x4x?x?xf32>, %k: tensor<288xf32>, %bias: tensor<8xf32>,
        %h: index, %w: index, %empty: {IMAGE}, %r: {IMAGE}, %t: {IMAGE}, %u: {IMAGE}, %v: {IMAGE},
        %s: tensor<?x8x1x1xf32>, %c8: tensor<8xf32>, %one: tensor<f32>) -> {IMAGE} {{
      %zero = arith.constant 0.0 : f32
      {"".join(parts)}
      return {result} : {IMAGE}
    }}"""
    return after(text, "fuse-epilogues", "func.func(canonicalize,cse)")


RELU = "%z = arith.maximumf %a, %zero : f32\nlinalg.yield %z : f32"
ADD = "%z = arith.addf %a, %b : f32\nlinalg.yield %z : f32"


def body(op: object) -> list[str]:
    return [inner.operation.name for inner in op.regions[0].blocks[0].operations]  # type: ignore[attr-defined]


def test_a_loop_becomes_the_epilogue() -> None:
    facts = fused(conv("x"), loop("y", "%x", RELU))
    (op,) = facts("abq.direct_conv")
    assert not facts("linalg.generic")
    assert body(op) == ["arith.constant", "arith.maximumf", "abq.yield"]


@pytest.mark.parametrize("division", ["divsi", "remui"])
def test_divisions_of_integers_stay_loops(division: str) -> None:
    """They trap; `guard-divisions` sees loops, not kernels with lanes that hold nothing."""
    text = f"""%1 = arith.fptosi %a : f32 to i32
      %2 = arith.fptosi %b : f32 to i32
      %3 = arith.{division} %1, %2 : i32
      %4 = arith.sitofp %3 : i32 to f32
      linalg.yield %4 : f32"""
    facts = fused(conv("x"), loop("y", "%x, %r", text))
    (op,) = facts("abq.direct_conv")
    assert facts("linalg.generic") and not len(op.regions[0].blocks)


def test_convolutions_of_codes_have_them_too() -> None:
    planes = """%q = "abq.weight"() {sym = "q"} : () -> tensor<1x64x!abq.packed<"planes">>
      %k8 = "abq.weight"() {sym = "w"} : () -> tensor<64x!abq.packed<"conv">>
    """
    codes = f"""%x = "abq.code_conv"(%q, %k8, %bias, %h, %w, %h, %w) ({{}}) {{kernel = "conv",
        node = "n", maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0>}}
      : (tensor<1x64x!abq.packed<"planes">>, tensor<64x!abq.packed<"conv">>, tensor<8xf32>, index,
         index, index, index) -> {IMAGE}
    """
    facts = fused(planes, codes, loop("z0", "%x", RELU), loop("y", "%z0, %r", ADD))
    (op,) = facts("abq.code_conv")
    assert not facts("linalg.generic") and op.opview.first is not None
    assert body(op) == ["arith.constant", "arith.maximumf", "arith.addf", "abq.yield"]


def test_convolutions_read_integers_and_make_bytes() -> None:
    """An i32 of a channel, a byte of an element."""
    codes = IMAGE.replace("f32", "i8")
    text = f"""func.func @main(%p: tensor<?x4x?x?xf32>, %k: tensor<288xf32>, %bias: tensor<8xf32>,
        %h: index, %w: index, %r: {codes}, %c: tensor<8x1x1xi32>, %empty: {codes}) -> {codes} {{
      {conv("x")}
      %y = linalg.generic {{indexing_maps = [{IDENTITY}, {IDENTITY},
          affine_map<(b, c, y, x) -> (c, 0, 0)>, {IDENTITY}],
          iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
        ins(%x, %r, %c : {IMAGE}, {codes}, tensor<8x1x1xi32>) outs(%empty : {codes}) {{
      ^bb0(%a: f32, %b: i8, %d: i32, %out: i8):
        %0 = arith.sitofp %d : i32 to f32
        %1 = arith.addf %a, %0 : f32
        %2 = arith.uitofp %b : i8 to f32
        %3 = arith.addf %1, %2 : f32
        %4 = arith.fptosi %3 : f32 to i32
        %5 = arith.trunci %4 : i32 to i8
        linalg.yield %5 : i8
      }} -> {codes}
      return %y : {codes}
    }}"""
    facts = after(text, "fuse-epilogues")
    assert not facts("linalg.generic")
    (op,) = facts("abq.direct_conv")
    assert [each.read for each in inputs_of(op)] == ["element", "channel"]
    arguments = op.regions[0].blocks[0].arguments
    assert [str(argument.type) for argument in arguments] == ["f32", "i8", "i32"]
    assert str(op.results[0].type) == codes


def test_loops_one_after_another() -> None:
    facts = fused(conv("x"), loop("z0", "%x", RELU), loop("y", "%z0, %r", ADD))
    (op,) = facts("abq.direct_conv")
    assert not facts("linalg.generic")
    assert body(op) == ["arith.constant", "arith.maximumf", "arith.addf", "abq.yield"]
    assert len(op.regions[0].blocks[0].arguments) == 2 and op.opview.first is not None


def test_what_is_computed_later_is_waited_for() -> None:
    """The residual is a loop that comes after the convolution."""
    facts = fused(conv("x"), loop("late", "%r", RELU), loop("y", "%late, %x", ADD))
    names = [name for name in facts.names() if name in ("abq.direct_conv", "linalg.generic")]
    assert names == ["linalg.generic", "abq.direct_conv"]
    (op,) = facts("abq.direct_conv")
    assert maker(op.opview.first) == "linalg.generic"


def test_numbers_for_channels_and_samples() -> None:
    maps = (
        IDENTITY,
        "affine_map<(b, c, y, x) -> (b, c, 0, 0)>",
        "affine_map<(b, c, y, x) -> (c)>",
        "affine_map<(b, c, y, x) -> ()>",
    )
    sums = """%1 = arith.mulf %a, %b : f32
      %2 = arith.addf %1, %c : f32
      %3 = arith.divf %2, %d : f32
      linalg.yield %3 : f32"""
    types = (IMAGE, "tensor<?x8x1x1xf32>", "tensor<8xf32>", "tensor<f32>")
    facts = fused(conv("x"), loop("y", "%x, %s, %c8, %one", sums, maps=maps, types=types))
    assert not facts("linalg.generic")
    (op,) = facts("abq.direct_conv")
    assert len(op.opview.maps) == 3


def test_a_value_read_twice_and_an_input_read_twice() -> None:
    """x * r + x, and r once more in a second loop."""
    sums = "%1 = arith.mulf %a, %b : f32\n%2 = arith.addf %1, %c : f32\nlinalg.yield %2 : f32"
    facts = fused(conv("x"), loop("z0", "%x, %r, %x", sums), loop("y", "%z0, %r", ADD))
    (op,) = facts("abq.direct_conv")
    assert not facts("linalg.generic") and len(op.opview.maps) == 1


def test_of_two_convolutions_the_last_one_adds() -> None:
    facts = fused(conv("x"), "%h1 = arith.addi %h, %w : index\n",
                  conv("x2").replace("%h, %w)", "%h1, %w)"), loop("y", "%x, %x2", ADD))  # fmt: skip
    first, second = facts("abq.direct_conv")
    assert not facts("linalg.generic")
    assert not len(first.regions[0].blocks) and second.opview.first == first.results[0]


def test_sizes_of_the_result_are_those_of_the_convolution() -> None:
    size = """%two = arith.constant 2 : index
      %size = tensor.dim %x, %two : tensor<?x8x?x?xf32>
      %more = tensor.empty(%size, %size, %size) : tensor<?x8x?x?xf32>
    """
    facts = fused(conv("x"), size, loop("y", "%x", RELU).replace("outs(%empty", "outs(%more"))
    assert not facts("linalg.generic") and not facts("tensor.dim")


TURNED = "affine_map<(b, c, y, x) -> (b, c, x, y)>"
INDEX = """%i = linalg.index 3 : index
      %j = arith.index_cast %i : index to i32
      %f = arith.sitofp %j : i32 to f32
      %z = arith.addf %a, %f : f32
      linalg.yield %z : f32"""
MANY = "%z = arith.addf %a, %f : f32\nlinalg.yield %z : f32"


@pytest.mark.parametrize(
    "parts",
    [
        (loop("z0", "%x", RELU), loop("y", "%z0, %x", ADD)),  # the result is read twice
        (loop("y", "%x", RELU, maps=(TURNED,)),),
        (loop("y", "%x, %x", ADD, maps=(IDENTITY, TURNED)),),
        (loop("y", "%x, %r", ADD, maps=(IDENTITY, TURNED)),),
        (loop("y", "%x", INDEX),),
        (loop("y", "%x, %r, %t, %u, %v, %empty", MANY),),
    ],
)
def test_others_stay_loops(parts: tuple[str, ...]) -> None:
    facts = fused(conv("x"), *parts)
    (op,) = facts("abq.direct_conv")
    assert len(facts("linalg.generic")) == len(parts)
    assert not len(op.regions[0].blocks)


ROWS = "tensor<?x?x96xf32>"
HERE = "affine_map<(b, s, n) -> (b, s, n)>"


def product(name: str) -> str:
    """A product of codes, %q times a packed weight."""
    return f"""%{name} = "abq.matmul"(%q, %w8, %b96) {{node = "n", kernels = ["one", "many"],
        max_rows = array<i64: 1, 0>, n = 96 : index, k = 64 : index,
        operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0>}}
      : (tensor<?x?x64x!abq.packed<"rows">>, tensor<64x!abq.packed<"int8">>, tensor<96xf32>)
        -> {ROWS}
    """


def fused_product(inputs: str, types: str, maps: str, body: str, target: object) -> Facts:
    """A loop over `inputs`: %x, a product; %r; %cols and %rows, numbers for these; %some."""
    arguments = ", ".join(f"%{chr(ord('a') + i)}: f32" for i in range(len(inputs.split(","))))
    text = f"""func.func @main(%b96: tensor<96xf32>, %r: {ROWS}, %cols: tensor<96xf32>,
        %rows: tensor<?x?xf32>, %some: tensor<?x96xf32>, %empty: {ROWS}) -> {ROWS} {{
      %zero = arith.constant 0.0 : f32
      %q = "abq.weight"() {{sym = "q"}} : () -> tensor<?x?x64x!abq.packed<"rows">>
      %w8 = "abq.weight"() {{sym = "w"}} : () -> tensor<64x!abq.packed<"int8">>
      {product("x")}
      %y = linalg.generic {{indexing_maps = [{maps}, {HERE}],
          iterator_types = ["parallel", "parallel", "parallel"]}}
        ins({inputs} : {types}) outs(%empty : {ROWS}) {{
      ^bb0({arguments}, %out: f32):
        {body}
      }} -> {ROWS}
      return %y : {ROWS}
    }}"""
    kernels = {name: Kernel(name, (1, 64), lambda module, isa: None) for name in ("one", "many")}
    unit = Unit(target=target, kernels=kernels)  # type: ignore[arg-type]
    return after(text, "fuse-epilogues", "func.func(canonicalize,cse)", unit=unit)


ALL = """%1 = arith.addf %a, %b : f32
  %2 = arith.mulf %1, %c : f32
  %3 = arith.mulf %2, %d : f32
  linalg.yield %3 : f32"""


def test_products_have_them_where_the_target_has_kernels() -> None:
    maps = f"{HERE}, {HERE}, affine_map<(b, s, n) -> (n)>, affine_map<(b, s, n) -> (b, s)>"
    types = f"{ROWS}, {ROWS}, tensor<96xf32>, tensor<?x?xf32>"
    facts = fused_product("%x, %r, %cols, %rows", types, maps, ALL, CpuTarget())
    assert not facts("linalg.generic") and not facts("abq.matmul")
    (op,) = facts("abq.fused_matmul")
    assert [each.read for each in inputs_of(op)] == ["element", "channel", "sample"]
    assert "kernels" in op.attributes and "max_rows" in op.attributes
    facts = fused_product("%x, %r, %cols, %rows", types, maps, ALL, resolve_target("sm_80"))
    assert facts("linalg.generic") and facts("abq.matmul")


def test_a_product_and_what_some_of_its_axes_have() -> None:
    """Rows of a product are numbered through: what the second axis alone has stays a loop."""
    maps = f"{HERE}, affine_map<(b, s, n) -> (s, n)>"
    facts = fused_product("%x, %some", f"{ROWS}, tensor<?x96xf32>", maps, ADD, CpuTarget())
    assert facts("linalg.generic") and facts("abq.matmul")
