from pathlib import Path

from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, run_pipeline
from facts import Facts, after
from operator_graph import Graph, normal

REDUCE = """  linalg.generic {{
      indexing_maps = [#id, #row], iterator_types = ["parallel", "reduction"]}}
      ins(%x : memref<?x?xf32>) outs({out} : memref<?xf32>) {{
  ^bb0(%in: f32, %acc: f32):
    %s = arith.{op} %acc, %in : f32
    linalg.yield %s : f32
  }}
"""
FILL = """  linalg.generic {{indexing_maps = [#none, #line], iterator_types = ["parallel"]}}
      ins(%zero : f32) outs({out} : memref<?xf32>) {{
  ^bb0(%in: f32, %old: f32):
    linalg.yield %in : f32
  }}
"""
MAPS = """#id = affine_map<(i, j) -> (i, j)>
#row = affine_map<(i, j) -> (i)>
#line = affine_map<(i) -> (i)>
#none = affine_map<(i) -> ()>
func.func private @read(memref<?xf32>)
"""


def outlined(body: str) -> tuple[Facts, Facts]:
    """The host and the kernels of a function with %x: ?x?, %y and %z: ? and the constant %zero."""
    unit = Unit()
    with make_context():
        unit.outlined = ir.Module.parse("module {}")
        text = f"""{MAPS}
func.func @main(%x: memref<?x?xf32>, %y: memref<?xf32>, %z: memref<?xf32>, %c: i1) {{
  %zero = arith.constant 0.0 : f32
{body}
  return
}}"""
        module = ir.Module.parse(text)
        run_pipeline(module.operation, ["outline-kernels"], unit)
        return Facts(module.operation.get_asm()), Facts(unit.outlined_text)


def fill(out: str = "%y") -> str:
    return FILL.format(out=out)


def reduction(out: str = "%y", op: str = "addf") -> str:
    return REDUCE.format(out=out, op=op)


def test_equal_loops_share_a_kernel() -> None:
    host, kernels = outlined(fill("%y") + fill("%z"))
    assert len(host("func.call")) == 2
    assert len(set(host.calls())) == len(kernels("func.func")) == 1
    assert not host("linalg.generic")


def test_a_reduction_takes_over_the_fill_before_it() -> None:
    host, kernels = outlined(fill() + reduction())
    assert len(host("func.call")) == 1
    (loop,) = kernels("scf.for")
    assert len(loop.results) == 1  # accumulates in a register
    assert loop.operands[3].owner.name == "arith.constant"


def test_a_window_slides_in_the_inner_loop() -> None:
    """y[i] += x[i + k] * w[k], i inside: elements that follow each other; no sum in a register."""
    body = """  linalg.generic {
      indexing_maps = [affine_map<(i, k) -> (i + k)>, affine_map<(i, k) -> (k)>,
                       affine_map<(i, k) -> (i)>],
      iterator_types = ["parallel", "reduction"]}
      ins(%y, %z : memref<?xf32>, memref<?xf32>) outs(%out : memref<?xf32>) {
  ^bb0(%a: f32, %w: f32, %acc: f32):
    %m = arith.mulf %a, %w : f32
    %s = arith.addf %acc, %m : f32
    linalg.yield %s : f32
  }
"""
    size = "  %c3 = arith.constant 3 : index\n  %out = memref.alloc(%c3) : memref<?xf32>\n"
    _, kernels = outlined(size + body)
    outer, inner = kernels("scf.for")
    assert not outer.results and not inner.results
    (store,) = kernels("memref.store")
    assert store.operands[2] == inner.regions[0].blocks[0].arguments[0]


def test_a_fill_that_others_see_stays() -> None:
    for between in (
        "func.call @read(%y) : (memref<?xf32>) -> ()\n",
        "scf.if %c {\nfunc.call @read(%y) : (memref<?xf32>) -> ()\n}\n",
        "%v = memref.cast %y : memref<?xf32> to memref<*xf32>\n",
    ):
        host, kernels = outlined(fill() + between + reduction())
        assert len([name for name in host.calls() if name != "read"]) == 2, between
        assert len(kernels("func.func")) == 2


def test_of_two_fills_none_is_taken_over() -> None:
    host, _ = outlined(fill() + fill() + reduction())
    assert len(host("func.call")) == 3


def test_only_what_accumulates_may_be_reassociated() -> None:
    body = """  linalg.generic {
      indexing_maps = [#id, #row], iterator_types = ["parallel", "reduction"]}
      ins(%x : memref<?x?xf32>) outs(%y : memref<?xf32>) {
  ^bb0(%in: f32, %acc: f32):
    %m = arith.maximumf %in, %zero : f32
    %a = arith.addf %m, %in : f32
    %s = arith.addf %acc, %a : f32
    linalg.yield %s : f32
  }
"""
    _, kernels = outlined(body)
    inner, accumulating = kernels("arith.addf")
    assert "reassoc" not in str(inner.attributes["fastmath"])
    assert "reassoc" in str(accumulating.attributes["fastmath"])
    assert "nnan" not in kernels.text


def test_maxima_keep_nan() -> None:
    _, kernels = outlined(reduction(op="maximumf"))
    assert str(kernels("arith.maximumf")[0].attributes["fastmath"]) == "#arith.fastmath<nsz>"


def test_copies_become_kernels() -> None:
    host, kernels = outlined("  memref.copy %y, %z : memref<?xf32> to memref<?xf32>\n")
    assert len(host("func.call")) == len(kernels("func.func")) == 1


def test_values_of_loops_are_passed() -> None:
    host, kernels = outlined("""  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %n = memref.dim %y, %c0 : memref<?xf32>
  scf.for %i = %c0 to %n step %c1 {
    linalg.generic {indexing_maps = [#line], iterator_types = ["parallel"]}
        outs(%z : memref<?xf32>) {
    ^bb0(%old: f32):
      %v = memref.load %y[%i] : memref<?xf32>
      linalg.yield %v : f32
    }
  }
""")
    (call,) = host("func.call")
    (loop,) = host("scf.for")
    assert loop.regions[0].blocks[0].arguments[0] in list(call.operands)
    assert len(call.operands) == len(kernels("func.func")[0].regions[0].blocks[0].arguments)


def test_long_loops_over_small_rows_are_cut_into_blocks() -> None:
    rows = """  linalg.generic {
      indexing_maps = [#id], iterator_types = ["parallel", "parallel"]}
      outs(%s : memref<?x16xf32>) {
  ^bb0(%old: f32):
    linalg.yield %zero : f32
  }
"""
    cast = "  %s = memref.reinterpret_cast %y to offset: [0], sizes: [%n, 16], strides: [16, 1]\n"
    cast += "      : memref<?xf32> to memref<?x16xf32>\n"
    size = "  %c0 = arith.constant 0 : index\n  %n = memref.dim %y, %c0 : memref<?xf32>\n"
    host, kernels = outlined(size + cast + rows)
    (call,) = host("func.call")
    grid = call.operands[0].owner
    while grid.name == "arith.muli":
        grid = grid.operands[1].owner
    assert grid.name == "arith.ceildivui"
    assert len(kernels("scf.for")) == 2
    assert len(kernels("arith.minui")) == 1  # of the outer loop: the last block is shorter


def test_the_pass_runs_on_text() -> None:
    text = f"{MAPS}func.func @main(%y: memref<?xf32>) {{\n%zero = arith.constant 0.0 : f32\n"
    facts = after(f"{text}{fill()}return\n}}", "outline-kernels")
    assert len(facts("func.call")) == 1


GATHER = """  linalg.generic {
      indexing_maps = [#id], iterator_types = ["parallel", "parallel"]}
      outs(%out : memref<?x?xf32>) {
  ^bb0(%old: f32):
    %row = linalg.index 0 : index
    %column = linalg.index 1 : index
    %place = memref.load %z[%row] : memref<?xf32>
    %number = arith.fptoui %place : f32 to i64
    %at = arith.index_cast %number : i64 to index
    %element = memref.load %x[%at, %column] : memref<?x?xf32>
    linalg.yield %element : f32
  }
"""


def test_what_a_loop_reads_in_every_turn_is_read_before_it() -> None:
    body = "  %n = arith.constant 4 : index\n  %out = memref.alloc(%n, %n) : memref<?x?xf32>\n"
    _, kernels = outlined(body + GATHER)
    (loop,) = kernels("scf.for")
    inside = [op for op in kernels("memref.load") if op.parent.name == "scf.for"]
    assert len(inside) == 1 and len(kernels("memref.load")) == 2
    assert loop.parent.name == "scf.if"  # a row without elements reads nothing


def scaled(channels: int, read: str) -> str:
    """Channels of rows, read as `read` says, from a buffer of their own."""
    x, y = f"memref<?x{channels}x?xf32>", f"memref<?x{channels}x?xf32>"
    if read == "(b, w, c)":
        x = f"memref<?x?x{channels}xf32>"
    return f"""  %x{channels} = memref.alloc(%two, %two) : {x}
  %y{channels} = memref.alloc(%two, %two) : {y}
  linalg.generic {{
      indexing_maps = [affine_map<(b, c, w) -> {read}>, affine_map<(b, c, w) -> (b, c, w)>],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins(%x{channels} : {x}) outs(%y{channels} : {y}) {{
  ^bb0(%a: f32, %old: f32):
    %s = arith.mulf %a, %a : f32
    linalg.yield %s : f32
  }}
"""


def test_layers_of_other_numbers_of_channels_share_a_kernel() -> None:
    two = "  %two = arith.constant 2 : index\n"
    host, kernels = outlined(two + scaled(8, "(b, c, w)") + scaled(24, "(b, c, w)"))
    assert len(host("func.call")) == 2
    assert len(kernels("func.func")) == 1


def test_a_size_that_an_inner_loop_strides_over_stays() -> None:
    two = "  %two = arith.constant 2 : index\n"
    _, kernels = outlined(two + scaled(8, "(b, w, c)") + scaled(24, "(b, w, c)"))
    assert len(kernels("func.func")) == 2


def test_a_transpose_is_cut_into_tiles() -> None:
    """Whole tiles of 16 rows are turned in registers, what is left goes element by element."""
    body = """  linalg.generic {
      indexing_maps = [affine_map<(i, j) -> (j, i)>, #id],
      iterator_types = ["parallel", "parallel"]}
      ins(%x : memref<?x?xf32>) outs(%out : memref<?x?xf32>) {
  ^bb0(%a: f32, %old: f32):
    linalg.yield %a : f32
  }
"""
    size = "  %c3 = arith.constant 3 : index\n  %out = memref.alloc(%c3, %c3) : memref<?x?xf32>\n"
    _, kernels = outlined(size + body)
    assert len(kernels("vector.load")) == len(kernels("vector.store")) == 16
    assert len(kernels("vector.shuffle")) == 4 * 16
    assert len(kernels("memref.load")) == len(kernels("memref.store")) == 1


def test_a_transposed_operand_is_read_in_tiles_too() -> None:
    body = """  linalg.generic {
      indexing_maps = [affine_map<(i, j) -> (j, i)>, #id, #id],
      iterator_types = ["parallel", "parallel"]}
      ins(%x, %out : memref<?x?xf32>, memref<?x?xf32>) outs(%out : memref<?x?xf32>) {
  ^bb0(%a: f32, %b: f32, %old: f32):
    %s = arith.addf %a, %b : f32
    linalg.yield %s : f32
  }
"""
    size = "  %c3 = arith.constant 3 : index\n  %out = memref.alloc(%c3, %c3) : memref<?x?xf32>\n"
    _, kernels = outlined(size + body)
    assert not kernels("vector.load")
    assert len(kernels("scf.for")) == 4  # tiles, and the elements of one


def windowed(places: int) -> Facts:
    """The kernels of y[c, i] = max over k of x[c, 2 i + k]."""
    body = f"""  %n = arith.constant 9 : index
  %x2 = memref.alloc(%n, %n) : memref<?x?xf32>
  %y2 = memref.alloc(%n, %n) : memref<?x?xf32>
  %w = memref.alloc() : memref<{places}x1xf32>
  linalg.generic {{
      indexing_maps = [affine_map<(c, i, k) -> (c, i * 2 + k)>, affine_map<(c, i, k) -> (k, 0)>,
                       affine_map<(c, i, k) -> (c, i)>],
      iterator_types = ["parallel", "parallel", "reduction"]}}
      ins(%x2, %w : memref<?x?xf32>, memref<{places}x1xf32>) outs(%y2 : memref<?x?xf32>) {{
  ^bb0(%a: f32, %unused: f32, %top: f32):
    %m = arith.maximumf %a, %top : f32
    linalg.yield %m : f32
  }}
"""
    return outlined(body)[1]


def test_a_small_window_is_spelled_out() -> None:
    kernels = windowed(3)
    assert len(kernels("arith.maximumf")) == 3
    assert len(kernels("memref.store")) == len(kernels("scf.for")) == 1
    assert len(windowed(40)("arith.maximumf")) == 1


def test_what_may_be_repeated_is_decided_before_the_loops() -> None:
    body = """  %zero_index = arith.constant 0 : index
  linalg.generic {indexing_maps = [#line], iterator_types = ["parallel"]}
      outs(%y : memref<?xf32>) {
  ^bb0(%old: f32):
    %i = linalg.index 0 : index
    %at = arith.select %c, %zero_index, %i : index
    %a = memref.load %z[%at] : memref<?xf32>
    linalg.yield %a : f32
  }
"""
    _, kernels = outlined(body)
    (choice,) = kernels("scf.if")
    assert len(kernels("scf.for")) == 2
    selects = [op for op in kernels("arith.select") if str(op.results[0].type) == "index"]
    (select,) = selects
    assert select.parent.parent == choice


def test_sizes_that_a_run_decides_are_repeated_or_not(tmp_path: Path) -> None:
    graph = Graph(x=("float32", "a", "h", 3, "w"), y=("float32", "b", "i", 3, "v"))
    graph("Add", "x", "y")
    shapes = [(2, 3, 3, 5), (1, 3, 3, 5), (2, 1, 3, 5), (2, 3, 3, 1), (1, 1, 3, 1)]
    feeds = [{"x": normal(*x), "y": normal(*y, seed=1)} for x in shapes for y in shapes]
    graph.check(tmp_path, *feeds)


def written(rows: str, columns: int | str, end: str) -> tuple[Facts, Facts]:
    """A function that gives back the sums of two matrices of so many rows, after `end`."""
    type_ = f"memref<{rows}x{columns}xf32>"
    size = ", ".join(["%n"] * [rows, columns].count("?"))
    unit = Unit()
    with make_context():
        unit.outlined = ir.Module.parse("module {}")
        text = f"""{MAPS}
func.func private @look({type_})
func.func @main(%x: {type_}, %n: index) -> {type_} {{
  %y = memref.alloc({size}) {{alignment = 64 : i64}} : {type_}
  linalg.generic {{
      indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel"]}}
      ins(%x : {type_}) outs(%y : {type_}) {{
  ^bb0(%in: f32, %old: f32):
    %s = arith.addf %in, %in : f32
    linalg.yield %s : f32
  }}
  {end.format(type=type_)}
  return %y : {type_}
}}"""
        module = ir.Module.parse(text)
        run_pipeline(module.operation, ["outline-kernels"], unit)
        return Facts(module.operation.get_asm()), Facts(unit.outlined_text)


def test_large_outputs_are_stored_around_the_caches() -> None:
    _, kernels = written("16384", 256, "")
    assert len(kernels("func.func")) == len(kernels("llvm.store")) == 1
    _, kernels = written("16383", 256, "")
    assert not kernels("llvm.store")
    host, kernels = written("?", 256, "")
    assert len(host("scf.if")) == len(kernels("llvm.store")) == 1
    assert len(host("func.call")) == len(kernels("func.func")) == 2


def test_a_run_decides_whether_rows_are_long() -> None:
    host, kernels = written("?", "?", "")
    assert len(host("scf.if")) == len(kernels("llvm.store")) == 1
    assert {256, 1 << 24} <= {op.attributes["value"].value for op in host("arith.constant")}
    assert len(host("arith.andi")) == 1


def test_what_is_read_again_or_has_short_rows_stays_in_the_caches() -> None:
    _, kernels = written("16384", 256, "func.call @look(%y) : ({type}) -> ()")
    assert not kernels("llvm.store")
    _, kernels = written("1638400", 255, "")
    assert not kernels("llvm.store")
