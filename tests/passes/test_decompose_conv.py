from abqc.passes.infrastructure import Unit
from facts import Facts, after


def conv(
    x: str, w: str, y: str, *, strides: str = "1, 1", groups: int = 1, more: str = ""
) -> tuple[Facts, Unit]:
    unit = Unit()
    text = f"""func.func @main(%x: tensor<{x}>) -> tensor<{y}> {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<{w}>
      %y = "abq.conv"(%x, %w) {{node = "c", strides = array<i64: {strides}>,
          dilations = array<i64: 1, 1>, pads = array<i64: 1, 1, 1, 1>, groups = {groups} : i64,
          {more}
          operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
          : (tensor<{x}>, tensor<{w}>) -> tensor<{y}>
      return %y : tensor<{y}>
    }}"""
    return after(text, "decompose-conv", unit=unit), unit


def test_one_group_is_a_matmul_of_patches() -> None:
    facts, unit = conv("?x3x8x8xf32", "5x3x3x3xf32", "?x5x8x8xf32")
    (matmul,) = facts("abq.matmul")
    assert list(matmul.operands[0].type.shape)[1:] == [8, 8, 27]
    assert list(matmul.operands[1].type.shape) == [5, 27]
    assert len(facts("linalg.generic")) == 2  # patches, and channels first again
    assert len(facts("tensor.pad")) == 1
    assert not facts("abq.conv") and not facts.messages() and not unit.floats


def test_sizes_known_at_run_time_must_cover_the_window() -> None:
    facts, _ = conv("?x3x?x8xf32", "5x3x3x3xf32", "?x5x?x4xf32", strides="2, 2")
    assert facts.messages() == ["the model: the input is smaller than the window"]
    assert len(facts("arith.floordivsi")) == 1


def test_the_matmul_rounds_activations_as_the_convolution_does() -> None:
    facts, _ = conv("?x3x8x8xf32", "5x3x3x3xf32", "?x5x8x8xf32", more='half = "bf16",')
    assert facts("abq.matmul")[0].attributes["half"].value == "bf16"


def test_groups_are_loops_and_stay_float() -> None:
    facts, unit = conv("?x4x8x8xf32", "8x2x3x3xf32", "?x8x8x8xf32", groups=2)
    assert not facts("abq.matmul")
    loops = facts("linalg.generic")[-1]
    kinds = [str(kind) for kind in loops.attributes["iterator_types"]]
    assert sum("reduction" in kind for kind in kinds) == 3
    assert [entry["node"] for entry in unit.floats] == ["c"]
    assert unit.floats[0]["bytes"] == 4 * 8 * 2 * 9
