import pytest
from facts import Facts, after


def update(past: str = "2x?x4", rows: str = "2x?x4", y: str = "2x?x4", type_: str = "f32") -> Facts:
    past, rows, y = (f"tensor<{sizes}x{type_}>" for sizes in (past, rows, y))
    return after(
        f"""func.func @main(%past: {past}, %rows: {rows}, %begins: tensor<2xi64>,
            %n: index) -> {y} {{
          %y = "abq.update"(%past, %rows, %begins, %n) {{axis = 1 : i64}}
              : ({past}, {rows}, tensor<2xi64>, index) -> {y}
          return %y : {y}
        }}""",
        "decompose-update",
        "canonicalize",
    )


def test_a_loop_reads_the_past_and_the_rows() -> None:
    facts = update()
    assert not facts("abq.update") and len(facts("linalg.generic")) == 1
    assert len(facts("tensor.extract")) == 3  # a place, a row, an element of the past


def test_open_sizes_may_be_zero() -> None:
    """The loop reads an element whatever it takes, so that there must be one."""
    assert len(update()("tensor.pad")) == 2
    assert not update(past="2x6x4", rows="2x1x4")("tensor.pad")


@pytest.mark.parametrize("empty", ["past", "rows"])
def test_a_part_that_is_empty_is_not_read(empty: str) -> None:
    facts = update(**{empty: "2x0x4"})
    assert len(facts("tensor.extract")) == (2 if empty == "past" else 1)


@pytest.mark.parametrize("type_", ["f16", "bf16", "i8", "i64"])
def test_every_type(type_: str) -> None:
    assert len(update(type_=type_)("linalg.generic")) == 1
