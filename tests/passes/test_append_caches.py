from abqc.codegen.targets.cuda import CudaTarget
from abqc.compiler.pipeline import TIDY
from abqc.passes.infrastructure import Unit
from abqc.runtime.tensor_spec import TensorSpec
from facts import Facts, after

CONCAT = """%y = tensor.concat dim(2) {} : ({}) -> tensor<1x2x?x4xf32>"""
PAST, NEW = "tensor<1x2x?x4xf32>", "tensor<1x2x1x4xf32>"


def appended(body: str, returned: str = "%y") -> tuple[Facts, Unit]:
    unit = Unit(inputs=[TensorSpec("past", "float32", (1, 2, None, 4))])
    count = returned.count("%")
    text = f"""func.func @main(%past: {PAST}, %new: {NEW}, %out: {PAST})
        -> ({", ".join([PAST] * count)}) {{
      {body}
      return {returned} : {", ".join([PAST] * count)}
    }}"""
    return after(text, "append-caches", unit=unit), unit


def test_an_input_that_grows_is_appended_to() -> None:
    facts, unit = appended(CONCAT.format("%past, %new", f"{PAST}, {NEW}"))
    (append,) = facts("abq.append")
    numbers = {name: append.attributes[name].value for name in ("input", "output", "axis")}
    assert numbers == {"input": 0, "output": 0, "axis": 2}
    assert not facts("func.return")[0].operands
    assert unit.kept_outputs == []
    assert unit.strided_inputs == {"past"}


def test_outputs_between_keep_their_numbers() -> None:
    body = CONCAT.format("%past, %new", f"{PAST}, {NEW}")
    facts, unit = appended(body, "%out, %y, %out")
    assert facts("abq.append")[0].attributes["output"].value == 1
    assert len(facts("func.return")[0].operands) == 2
    assert unit.kept_outputs == [0, 2]


def test_what_is_read_elsewhere_stays() -> None:
    reads_past = CONCAT.format("%past, %new", f"{PAST}, {NEW}")
    facts, unit = appended(reads_past, "%y, %past")
    assert not facts("abq.append")
    assert unit.kept_outputs == [0, 1]


def test_other_concatenations_stay() -> None:
    three = CONCAT.format("%past, %new, %new", f"{PAST}, {NEW}, {NEW}")
    assert not appended(three)[0]("abq.append")
    computed = f"%p = tensor.cast %past : {PAST} to tensor<1x2x?x?xf32>\n"
    computed += f"%q = tensor.cast %p : tensor<1x2x?x?xf32> to {PAST}\n"
    body = computed + CONCAT.format("%q, %new", f"{PAST}, {NEW}")
    assert not appended(body)[0]("abq.append")


UPDATE = """%y = "abq.update"({past}, %new, %begins, %capacity) {{axis = 1 : i64}}
    : (tensor<2x?x4xf32>, tensor<2x?x4xf32>, tensor<2xi64>, index) -> tensor<2x?x4xf32>"""


def updated(past: str, unit: Unit) -> Facts:
    text = f"""func.func @main(%past: tensor<2x?x4xf32>, %new: tensor<2x?x4xf32>,
        %begins: tensor<2xi64>, %capacity: index) -> tensor<2x?x4xf32> {{
      %double = arith.addf %past, %past : tensor<2x?x4xf32>
      {UPDATE.format(past=past)}
      return %y : tensor<2x?x4xf32>
    }}"""
    unit.inputs = [TensorSpec(name, "float32", ()) for name in ("past", "new", "begins")]
    return after(text, TIDY, "append-caches", "decompose-update", unit=unit)


def test_an_update_of_an_input_is_written_by_the_runtime() -> None:
    unit = Unit()
    facts = updated("%past", unit)
    (append,) = facts("abq.append")
    assert append.attributes["axis"].value == 1 and len(append.operands) == 3
    assert unit.kept_outputs == [] and not facts("linalg.generic")


def test_an_update_of_anything_else_is_a_loop() -> None:
    facts = updated("%double", Unit())
    assert not facts("abq.append") and not facts("abq.update") and facts("linalg.generic")


def test_a_gpu_has_the_places_and_writes_in_a_loop() -> None:
    facts = updated("%past", Unit(target=CudaTarget.named("sm_80")))
    assert not facts("abq.append") and facts("linalg.generic")
