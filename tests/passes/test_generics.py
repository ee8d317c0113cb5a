from abqc.passes.loops.generics import Tree, expression
from facts import Facts


def tree_of(body: str) -> Tree:
    facts = Facts(f"""#id = affine_map<(d0) -> (d0)>
    func.func @main(%x: tensor<?xf32>) -> tensor<?xf32> {{
      %y = linalg.generic {{indexing_maps = [#id, #id], iterator_types = ["parallel"]}}
          ins(%x : tensor<?xf32>) outs(%x : tensor<?xf32>) {{
      ^bb0(%s0: f32, %out: f32):
        {body}
      }} -> tensor<?xf32>
      return %y : tensor<?xf32>
    }}""")
    (op,) = facts("linalg.generic")
    return expression(op)


def test_a_tree_of_a_body() -> None:
    tree = tree_of("%one = arith.constant 1.0 : f32\n%a = arith.addf %one, %s0 : f32\n"
                 "%b = arith.mulf %a, %a : f32\nlinalg.yield %b : f32")  # fmt: skip
    sum_ = ("arith.addf", ("const", 1.0), ("in", 0))
    assert tree == ("arith.mulf", sum_, sum_)


def test_values_that_are_used_again_and_again() -> None:
    """Sixty steps would be 2^60 operations as a tree."""
    steps = "\n".join(f"%s{i + 1} = arith.mulf %s{i}, %s{i} : f32" for i in range(60))
    name, *operands = tree_of(f"{steps}\nlinalg.yield %s60 : f32")
    assert name == "arith.mulf"
    assert len(repr(operands)) < 100_000
    assert "large" in repr(operands)
