from facts import Facts, after


def constant(value: str = "%true", reads: str = "", body: str = "") -> Facts:
    """`select(<value>, x, 0)` over a tensor of values made by a loop."""
    return after(
        f"""
#id = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<?x3xf32>, %b: tensor<?x3xi1>, %e: tensor<?x3xi1>, %o: tensor<?x3xf32>,
    %argument: i1) -> tensor<?x3xf32> {{
  %true = arith.constant true
  %zero = arith.constant 0.0 : f32
  %t = linalg.generic {{indexing_maps = [{"#id, " if reads else ""}#id],
      iterator_types = ["parallel", "parallel"]}} {reads} outs(%e : tensor<?x3xi1>) {{
    ^bb0({"%r: i1, " if reads else ""}%w: i1):
      linalg.yield {value} : i1
  }} -> tensor<?x3xi1>
  %y = linalg.generic {{indexing_maps = [#id, #id, #id], iterator_types = ["parallel", "parallel"]}}
      ins(%t, %x : tensor<?x3xi1>, tensor<?x3xf32>) outs(%o : tensor<?x3xf32>) {{
    ^bb0(%c: i1, %v: f32, %w: f32):
      %s = arith.select %c, %v, %zero : f32
      linalg.yield %s : f32
  }} -> tensor<?x3xf32>
  return %y : tensor<?x3xf32>
}}""",
        "fill-constants",
        "func.func(linalg-fuse-elementwise-ops,canonicalize,cse)",
    )


def test_what_is_true_everywhere_is_no_choice() -> None:
    facts = constant()
    assert not facts("arith.select") and not facts("linalg.fill")


def test_other_loops_stay() -> None:
    assert facts_have_select(constant("%argument"))
    assert facts_have_select(constant("%r", "ins(%b : tensor<?x3xi1>)"))


def facts_have_select(facts: Facts) -> bool:
    return len(facts("arith.select")) == 1 and not facts("linalg.fill")
