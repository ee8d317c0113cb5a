from facts import after

TEXT = """func.func @main(%n: index) -> (tensor<?xf32>, tensor<?xf32>) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty(%n) : tensor<?xf32>
  %f = linalg.fill ins(%zero : f32) outs(%e : tensor<?xf32>) -> tensor<?xf32>
  return %f, %f : tensor<?xf32>, tensor<?xf32>
}"""


def test_every_use_has_its_own_fill_and_buffer() -> None:
    facts = after(TEXT, "separate-fills")
    fills = facts("linalg.fill")
    assert len(fills) == 2
    assert len({fill.operands[1] for fill in fills}) == 2
    assert list(facts("func.return")[0].operands) == [fill.results[0] for fill in reversed(fills)]


def test_views_of_empty_tensors_are_separate_too() -> None:
    facts = after(
        """func.func @main(%n: index) -> (tensor<?x1xf32>, tensor<?x1xf32>) {
          %zero = arith.constant 0.0 : f32
          %e = tensor.empty(%n) : tensor<?xf32>
          %v = tensor.expand_shape %e [[0, 1]] output_shape [%n, 1]
              : tensor<?xf32> into tensor<?x1xf32>
          %f = linalg.fill ins(%zero : f32) outs(%v : tensor<?x1xf32>) -> tensor<?x1xf32>
          return %f, %f : tensor<?x1xf32>, tensor<?x1xf32>
        }""",
        "separate-fills",
    )
    for name in ("tensor.empty", "tensor.expand_shape", "linalg.fill"):
        assert len(facts(name)) == 2, name
