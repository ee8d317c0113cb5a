from abqc.passes.infrastructure import Unit
from facts import after


def test_rows_are_encoded_and_decoded_by_loops() -> None:
    text = """func.func @main(%x: tensor<?x2x?x16xf32>) -> tensor<?x2x?x16xf32> {
      %q = "abq.quantize_cache"(%x) {format = "kv4"}
          : (tensor<?x2x?x16xf32>) -> tensor<?x2x?x12xi8>
      %y = "abq.dequantize_cache"(%q) {format = "kv4"}
          : (tensor<?x2x?x12xi8>) -> tensor<?x2x?x16xf32>
      return %y : tensor<?x2x?x16xf32>
    }"""
    unit = Unit()
    facts = after(text, "decompose-caches", unit=unit)
    assert not [name for name in facts.names() if name.startswith("abq.")]
    assert len(facts("linalg.generic")) == 5  # least, most, scales, bytes, values
    (note,) = unit.notes
    assert note["note"] == "decodes all rows of a cache in kv4 in every run"
