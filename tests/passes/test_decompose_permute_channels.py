from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from facts import after

PERMUTE = """func.func @main(%x: tensor<?x2x?x3xf32>) -> tensor<?x2x?x3xf32> {
  %y = "abq.permute_channels"(%x) {order = array<i64: 2, 0, 1, 0, 2, 1>, axis = 1 : i64,
      group = 1 : i64} : (tensor<?x2x?x3xf32>) -> tensor<?x2x?x3xf32>
  return %y : tensor<?x2x?x3xf32>
}"""


def test_it_becomes_a_loop_with_a_table(tmp_path) -> None:
    unit = Unit(store=WeightStore(tmp_path))
    facts = after(PERMUTE, "decompose-permute-channels", unit=unit)
    assert not facts("abq.permute_channels") and len(facts("linalg.generic")) == 1
    (symbol,) = list(unit.store)
    assert unit.store.get(symbol).tolist() == [[2, 0, 1], [0, 2, 1]]
