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
