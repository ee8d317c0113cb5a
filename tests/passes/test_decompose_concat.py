from facts import after

TEXT = """func.func @main(%a: tensor<?x2xf32>, %b: tensor<?x3xf32>) -> tensor<?x5xf32> {
  %c = tensor.concat dim(1) %a, %b
      : (tensor<?x2xf32>, tensor<?x3xf32>) -> tensor<?x5xf32>
  return %c : tensor<?x5xf32>
}"""


def test_parts_are_inserted_one_after_the_other() -> None:
    facts = after(TEXT, "decompose-concat", "canonicalize")
    first, second = facts("tensor.insert_slice")
    assert second.operands[1] == first.results[0]
    assert list(first.attributes["static_offsets"]) == [0, 0]
    assert list(second.attributes["static_offsets"]) == [0, 2]
    assert not facts("tensor.concat")


def test_sizes_of_the_other_axes_are_checked() -> None:
    assert after(TEXT, "decompose-concat", "canonicalize").messages() == [
        "the model: sizes along axis 0 differ"
    ]


def test_one_tensor_twice_needs_no_check() -> None:
    text = """func.func @main(%a: tensor<?x2xf32>) -> tensor<?x4xf32> {
      %c = tensor.concat dim(1) %a, %a
          : (tensor<?x2xf32>, tensor<?x2xf32>) -> tensor<?x4xf32>
      return %c : tensor<?x4xf32>
    }"""
    assert not after(text, "decompose-concat", "cse", "canonicalize").messages()


def test_parts_without_elements_are_left_out() -> None:
    """Their slices would lie outside of the result, which the verifier refuses."""
    text = """func.func @main(%a: tensor<2x3xf32>, %b: tensor<0x3xf32>) -> tensor<2x3xf32> {
      %c = tensor.concat dim(0) %b, %a, %b
          : (tensor<0x3xf32>, tensor<2x3xf32>, tensor<0x3xf32>) -> tensor<2x3xf32>
      return %c : tensor<2x3xf32>
    }"""
    assert len(after(text, "decompose-concat")("tensor.insert_slice")) == 1
