import numpy as np
import pytest
from abqc.dialects import hadamard
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from facts import Facts, after


def decomposed(type_: str, block: int, unit: Unit) -> Facts:
    text = f"""func.func @main(%x: {type_}) -> {type_} {{
      %y = "abq.hadamard"(%x) {{block = {block} : i64}} : ({type_}) -> {type_}
      %z = "abq.hadamard"(%y) {{block = {block} : i64}} : ({type_}) -> {type_}
      return %z : {type_}
    }}"""
    return after(text, "decompose-hadamard", unit=unit)


@pytest.mark.parametrize(
    "type_", ["tensor<?x2x?x24xf32>", "tensor<3x24xf32>", "tensor<5x?x24xf32>"]
)
def test_it_becomes_a_product_with_a_matrix_that_is_stored_once(tmp_path, type_: str) -> None:
    unit = Unit(store=WeightStore(tmp_path))
    facts = decomposed(type_, 8, unit)
    assert not facts("abq.hadamard") and len(facts("abq.batch_matmul")) == 2
    (symbol,) = list(unit.store)
    matrix = unit.store.get(symbol)[0]
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    blocks = x.reshape(-1, 8) @ matrix.T
    assert np.allclose(blocks.reshape(x.shape), hadamard.transform(x, 8), atol=1e-6)
