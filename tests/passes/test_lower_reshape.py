from facts import after


def test_dynamic_reshape_becomes_views() -> None:
    facts = after(
        """func.func @main(%x: tensor<?x6xf32>, %a: index, %b: index) -> tensor<?x3x?xf32> {
          %c3 = arith.constant 3 : index
          %shape = tensor.from_elements %a, %c3, %b : tensor<3xindex>
          %y = tensor.reshape %x(%shape)
              : (tensor<?x6xf32>, tensor<3xindex>) -> tensor<?x3x?xf32>
          return %y : tensor<?x3x?xf32>
        }""",
        "lower-reshape",
    )
    (expand,) = facts("tensor.expand_shape")
    assert list(expand.operands)[1:] == list(facts.function().regions[0].blocks[0].arguments)[1:]
    assert len(facts("tensor.collapse_shape")) == 1
    assert not facts("tensor.reshape")


def test_to_rank_0_reads_the_only_element() -> None:
    facts = after(
        """func.func @main(%x: tensor<?x1xf32>) -> tensor<f32> {
          %y = tensor.collapse_shape %x [] : tensor<?x1xf32> into tensor<f32>
          return %y : tensor<f32>
        }""",
        "lower-reshape",
        "canonicalize",
    )
    assert not facts("tensor.collapse_shape")
    assert len(facts("tensor.extract")) == 1
    assert facts.messages() == ["the model: a tensor that should have one element has not"]


def test_static_collapse_to_rank_0_stays() -> None:
    facts = after(
        """func.func @main(%x: tensor<1x1xf32>) -> tensor<f32> {
          %y = tensor.collapse_shape %x [] : tensor<1x1xf32> into tensor<f32>
          return %y : tensor<f32>
        }""",
        "lower-reshape",
    )
    assert len(facts("tensor.collapse_shape")) == 1
