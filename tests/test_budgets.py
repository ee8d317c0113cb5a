"""Budgets of bits, bytes and seconds: read, spent, kept to."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.compiler.calibration.budget import Budget, Option, Weighed, allocate, options_of, total
from abqc.compiler.calibration.budget import parse_budget as parse
from abqc.compiler.calibration.plan import Chosen, spend
from abqc.compiler.driver import compile_file
from abqc.dialects.formats import parse_scheme
from abqc.errors import InputError
from onnx_models import node

WIDTH, LAYERS = 448, 4


@pytest.mark.parametrize(
    ("text", "kind", "amount", "shapes"),
    [
        ("3.2bpw", "bpw", 3.2, {}),
        (" size=60MB ", "size", 60e6, {}),
        ("size=1.5MiB", "size", 1.5 * 2**20, {}),
        ("size=500kB", "size", 5e5, {}),
        ("latency=12ms", "latency", 12e-3, {}),
        ("latency=800us@x=1x128,scale=", "latency", 8e-4, {"x": (1, 128), "scale": ()}),
        ("latency=0.5s@a=b=2", "latency", 0.5, {"a=b": (2,)}),
    ],
)
def test_budgets_are_read(text: str, kind: str, amount: float, shapes: dict) -> None:
    budget = parse(text)
    assert (budget.kind, budget.amount, budget.shapes) == (kind, pytest.approx(amount), shapes)
    assert str(budget) == text.strip()


@pytest.mark.parametrize(
    "text", ["much", "4", "size=60", "size=60M", "latency=12", "latency=12ms@", "latency=1ms@x=1x?"]
)
def test_other_texts_are_no_budgets(text: str) -> None:
    with pytest.raises(InputError, match="is no budget"):
        parse(text)


def draw(rng: np.random.Generator, names: int, formats: int) -> dict[str, list[Option]]:
    scheme = parse_scheme("w4")
    return {
        str(name): options_of(
            [(cost, Weighed(scheme, 1, cost, error)) for cost, error in rng.random((formats, 2))]
        )
        for name in range(names)
    }


def test_options_that_nobody_would_take_are_left_out() -> None:
    scheme = parse_scheme("w4")
    priced = [(3.0, 0.1), (1.0, 0.5), (2.0, 0.6), (None, 0.0), (1.0, 0.4), (4.0, 0.1)]
    found = options_of([(cost, Weighed(scheme, 1, 1.0, error)) for cost, error in priced])
    assert [(o.cost, o.error) for o in found] == [(1.0, 0.4), (3.0, 0.1)]


def test_a_knapsack_is_filled_nearly_as_well_as_by_trying_all() -> None:
    rng = np.random.default_rng(0)
    lost = []
    for _ in range(40):
        options = draw(rng, 4, 5)
        least = sum(choices[0].cost for choices in options.values())
        most = sum(choices[-1].cost for choices in options.values())
        limit = least + (most - least) * rng.random()
        chosen = allocate(options, limit)
        assert total(chosen) <= limit
        fitting = [c for c in product(*options.values()) if sum(o.cost for o in c) <= limit]
        best = min(sum(o.error for o in choice) for choice in fitting)
        lost.append(sum(o.error for o in chosen.values()) - best)
    assert np.mean(lost) < 0.05


class Growing:
    """Each option that is not the cheapest takes `kernel` more than it was expected to."""

    def __init__(self, kernel: float) -> None:
        self.kernel, self.asked = kernel, 0

    def cost(self, name: str, weighed: Weighed) -> float:
        return weighed.bits

    def measured(self, chosen: Chosen) -> float:
        self.asked += 1
        return 10 + total(chosen) + self.kernel * sum(o.cost > 1 for o in chosen.values())

    def limit(self, budget: Budget) -> float:
        return budget.amount

    def text(self, amount: float) -> str:
        return f"{amount:g} units"


def test_what_is_measured_counts() -> None:
    scheme = parse_scheme("w4")
    options = {str(i): [Option(scheme, 1, 1), Option(scheme, 2, 0.5)] for i in range(6)}
    chosen, taken = spend(options, Growing(0), parse("size=20B"))
    assert total(chosen) == 10 and taken == "20 units"
    meter = Growing(0.5)
    chosen, _ = spend(options, meter, parse("size=20B"))
    assert 10 + total(chosen) <= meter.measured(chosen) <= 20 and total(chosen) > 6
    with pytest.raises(InputError, match="a budget of size=15B cannot be met") as raised:
        spend(options, Growing(0), parse("size=15B"))
    assert raised.value.hint == "the least is 16 units"
    # The first choice is too much; what it teaches leaves the cheapest ones, which are known.
    meter = Growing(3)
    chosen, _ = spend(options, meter, parse("size=26B"))
    assert total(chosen) > 6 and meter.measured(chosen) <= 26
    chosen, _ = spend(options, Growing(100), parse("size=20B"))
    assert total(chosen) == 6  # only the cheapest ones are sure to fit


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    nodes, constants, h = [], {}, "x"
    for layer in range(LAYERS):
        w = rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(np.sqrt(WIDTH))
        constants[f"w{layer}"] = w * np.float32(3.0**-layer)
        nodes += [
            node("MatMul", f"{h} w{layer}", f"m{layer}", f"layer{layer}"),
            node("Relu", f"m{layer}", f"r{layer}"),
        ]
        h = f"r{layer}"
    nodes.append(node("Add", f"{h} x", "y"))
    shape = ["batch", WIDTH]
    proto = models.model(nodes, [("x", np.float32, shape)], [("y", np.float32, shape)], constants)
    path = tmp_path_factory.mktemp("mlp") / "model.onnx"
    onnx.save(proto, path)
    return path


def compiled(
    mlp: Path, folder: Path, budget: str, target: str = "cpu", recipe: str = "w4a8 gptq"
) -> tuple[Path, str]:
    """The library, and the recipe that was written beside it."""
    x = np.random.default_rng(1).standard_normal((500, WIDTH), np.float32)
    library = folder / "m.so"
    # Kernels of one instruction set, whatever CPU this is.
    cpu = "avx2" if target == "cpu" else None
    compile_file(
        mlp, quant=recipe, calib={"x": x}, budget=budget, output=library, target=target, cpu=cpu
    )
    return library, library.with_suffix(".recipe.txt").read_text()


def test_a_library_keeps_to_its_size(mlp: Path, tmp_path: Path) -> None:
    limit = 480e3
    library, recipe = compiled(mlp, tmp_path, f"size={limit / 1e3:g}kB")
    # What is left would not buy another format's kernels.
    assert 0.85 * limit < library.stat().st_size <= limit
    assert re.search(r"# chosen for --budget size=480kB \(4\d\d\.\d kB\):", recipe)
    formats = re.findall(r'"layer\d" (w\d\S*)', recipe)
    assert len(formats) == 4 and len(set(formats)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["w4a4", "w4a8 balance"])
def test_what_calibration_adds_counts(recipe: str, mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be met") as raised:
        compiled(mlp, tmp_path, "size=50kB", recipe=recipe)
    found = re.fullmatch(r"the least is (\d+\.\d) kB", str(raised.value.hint))
    assert found
    limit = 1e3 * float(found[1]) + 100
    library, _ = compiled(mlp, tmp_path, f"size={limit / 1e3:.1f}kB", recipe=recipe)
    assert library.stat().st_size <= limit


@pytest.mark.slow
def test_a_size_that_cannot_be_had(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a budget of size=50kB cannot be met") as raised:
        compiled(mlp, tmp_path, "size=50kB")
    found = re.fullmatch(r"the least is (\d+\.\d) kB", str(raised.value.hint))
    assert found and 100 < float(found[1]) < 700


def test_a_latency_is_that_of_the_cost_model(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the shapes of inputs") as raised:
        compiled(mlp, tmp_path, "latency=1ms")
    assert "latency=1ms@x=1x1" in str(raised.value.hint) and "batch" in str(raised.value.hint)
    with pytest.raises(InputError, match=r"latency=0.01us@x=1x448 cannot be met") as raised:
        compiled(mlp, tmp_path, "latency=0.01us@x=1x448")
    found = re.fullmatch(r"the least is (\S+) ms predicted", str(raised.value.hint))
    assert found
    limit = 1.1e3 * float(found[1])
    _, recipe = compiled(mlp, tmp_path, f"latency={limit:.3f}us@x=1x448")
    predicted = re.search(r"\((\S+) ms predicted\)", recipe)
    assert predicted and float(found[1]) <= float(predicted[1]) <= limit / 1e3


@pytest.mark.slow
def test_budgets_of_a_gpu(mlp: Path, tmp_path: Path) -> None:
    library, recipe = compiled(mlp, tmp_path, "size=1.1MB", target="sm_80")
    assert library.stat().st_size <= 1.1e6 and "chosen for" in recipe
    _, recipe = compiled(mlp, tmp_path, "latency=1ms@x=1x448", target="sm_80")
    assert "ms predicted" in recipe
