"""Normalizations take the packs of their rows along, where the target has a kernel for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from abqc.codegen.strategy import Kernel
from abqc.dialects.norm_spec import NormSpec
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from facts import Facts, after, maker

X = "tensor<?x?x96xf32>"


def packed(bytes_: int, name: str) -> str:
    return f'tensor<?x?x{bytes_}x!abq.packed<"{name}">>'


def pack(result: str, kernel: str, bytes_: int = 112, *, given: bool = False) -> str:
    more, types = (", %scale, %zero", ", tensor<?xf32>, tensor<?xi32>") if given else ("", "")
    return f"""%{result} = "abq.pack"(%y{more}) {{kernel = "{kernel}",
      operandSegmentSizes = array<i32: 1, {int(given)}, {int(given)}>}}
      : ({X}{types}) -> {packed(bytes_, kernel)}"""


def matmul(result: str, x: str, x_type: str) -> str:
    return f"""%{result} = "abq.matmul"(%{x}, %w) {{node = "{result}", kernels = ["mm"],
      max_rows = array<i64: 0>, n = 5 : index, k = 96 : index,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
      : ({x_type}, tensor<64x!abq.packed<"w">>) -> tensor<?x?x5xf32>"""


def model(body: str, results: dict[str, str]) -> str:
    """A normalization `%y`, `%s` of %x + %r, then `body`; `results` are names and types."""
    types = ", ".join(results.values())
    return f"""func.func @main(%x: {X}, %r: {X}, %weight: tensor<96xf32>,
        %scale: tensor<?xf32>, %zero: tensor<?xi32>) -> ({types}) {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<64x!abq.packed<"w">>
      %y, %s = "abq.norm"(%x, %r, %weight) {{kind = "rms", epsilon = 1.0e-5 : f32,
        operandSegmentSizes = array<i32: 1, 1, 1, 0>}}
        : ({X}, {X}, tensor<96xf32>) -> ({X}, {X})
      {body}
      return {", ".join("%" + name for name in results)} : {types}
    }}"""


class Objects:
    on_device = False


@dataclass
class Target:
    """Has kernels for at most `most` packs at once, but none of the kernels `refused`."""

    most: int = 3
    max_norm_columns: int = 0
    objects = Objects()
    refused: Sequence[str] = ()
    asked: list[tuple[NormSpec, bool]] = field(default_factory=list)

    def norm_pack(
        self, packs: Sequence[Kernel], spec: NormSpec, *, keeps_row: bool
    ) -> Kernel | None:
        names = [kernel.name for kernel in packs]
        self.asked.append((spec, keeps_row))
        if len(names) > self.most or set(names) & set(self.refused):
            return None
        return Kernel("_".join(["norm", *names]), (4,), lambda module, arch: None)


def unit_of(target: Target) -> Unit:
    names = {"a": (4,), "b": (4,), "c": (4,), "d": (4,), "mm": (8, 16)}
    kernels = {name: Kernel(name, block, lambda m, a: None) for name, block in names.items()}
    return Unit(target=target, kernels=kernels)


def fused(body: str, results: dict[str, str], target: Target | None = None) -> Facts:
    return after(model(body, results), "fuse-norm-pack", unit=unit_of(target or Target()))


def kernels(facts: Facts) -> list[str]:
    (op,) = facts("abq.norm_pack")
    return [name.value for name in op.attributes["kernels"]]


def test_a_pack_becomes_part_of_the_norm() -> None:
    target = Target()
    facts = fused(pack("a", "a"), {"a": packed(112, "a")}, target)
    assert kernels(facts) == ["a"]
    assert not facts("abq.norm") and not facts("abq.pack")
    assert target.asked[0] == (NormSpec("rms", 96, weight=True, residual=True), True)


def test_other_users_read_row_and_sum_from_it() -> None:
    facts = fused(pack("a", "a"), {"y": X, "s": X, "a": packed(112, "a")})
    (op,), (ret,) = facts("abq.norm_pack"), facts("func.return")
    assert list(ret.operands) == list(op.results)


def test_different_packs_are_made_at_once() -> None:
    body = pack("b", "b", 128) + "\n" + pack("a", "a")
    facts = fused(body, {"b": packed(128, "b"), "a": packed(112, "a")})
    assert kernels(facts) == ["a", "b"]
    (op,), (ret,) = facts("abq.norm_pack"), facts("func.return")
    assert list(ret.operands) == [op.results[3], op.results[2]]


@pytest.mark.parametrize(
    ("target", "taken"),
    [(Target(most=1), "a"), (Target(refused=["a"]), "b"), (Target(refused=["b"]), "a")],
)
def test_one_pack_if_not_all(target: Target, taken: str) -> None:
    body = pack("a", "a") + "\n" + pack("b", "b")
    facts = fused(body, {"a": packed(112, "a"), "b": packed(112, "b")}, target)
    assert kernels(facts) == [taken]
    (left,) = facts("abq.pack")
    assert maker(left.operands[0]) == "abq.norm_pack"


def test_more_packs_than_results_are_left() -> None:
    names = ["a", "b", "c", "d"]
    body = "\n".join(pack(name, name) for name in names)
    facts = fused(body, {name: packed(112, name) for name in names})
    assert kernels(facts) == ["a", "b", "c"]
    assert len(facts("abq.pack")) == 1


def test_without_a_kernel_both_stay() -> None:
    facts = fused(pack("a", "a"), {"a": packed(112, "a")}, Target(most=0))
    assert len(facts("abq.norm")) == len(facts("abq.pack")) == 1


def test_scales_that_rows_share_are_measured_from_the_row() -> None:
    facts = fused(pack("a", "a", given=True), {"a": packed(112, "a")})
    assert len(facts("abq.norm")) == len(facts("abq.pack")) == 1


TIDY = "func.func(canonicalize,cse)"


def fused_loops(results: dict[str, str], target: Target) -> Facts:
    """As `fused`, of a normalization that is loops by then."""
    passes = ("decompose-norm", TIDY, "fuse-norm-pack", TIDY)
    return after(model(pack("a", "a"), results), *passes, unit=unit_of(target))


@pytest.mark.parametrize("others", [False, True])
def test_loops_whose_rows_are_packed_are_recognized(others: bool) -> None:
    target = Target()
    facts = fused_loops({"a": packed(112, "a")} | ({"y": X} if others else {}), target)
    assert kernels(facts) == ["a"] and not facts("abq.pack")
    (addition,) = facts("linalg.generic")  # of the residual
    assert facts("abq.norm_pack")[0].operands[0] == addition.results[0]
    spec, _ = target.asked[0]
    assert spec.weight and not spec.residual


def test_loops_stay_where_there_is_no_kernel() -> None:
    facts = fused_loops({"a": packed(112, "a")}, Target(most=0))
    assert len(facts("abq.pack")) == 1 and not facts("abq.norm") + facts("abq.norm_pack")
    assert len(facts("linalg.generic")) == 3


def test_loops_whose_rows_are_not_packed_stay() -> None:
    text = model("", {"y": X})
    facts = after(text, "decompose-norm", TIDY, "fuse-norm-pack", unit=unit_of(Target()))
    assert len(facts("linalg.generic")) == 3


@pytest.mark.parametrize("keeps_row", [False, True])
def test_lowering_is_one_launch(keeps_row: bool, tmp_path: Path) -> None:
    target = Target()
    body = "\n".join(
        [
            pack("a", "a"),
            pack("b", "b", 128),
            matmul("one", "a", packed(112, "a")),
            matmul("two", "b", packed(128, "b")),
        ]
    )
    results = dict.fromkeys(("one", "two"), "tensor<?x?x5xf32>")
    unit = unit_of(target)
    unit.store = WeightStore(tmp_path)
    passes = ("fuse-norm-pack", "resolve-dims", "lower-abq")
    text = model(body, results | ({"y": X} if keeps_row else {}))
    facts = after(text, *passes, unit=unit)
    assert facts.calls()[0] == "norm_a_b" and "norm_a_b" in unit.kernels
    assert target.asked[-1][1] == keeps_row
    # Grid, x, residual, weight, the row, two packs, rows and epsilon.
    assert len(facts("func.call")[0].operands) == 8 + keeps_row
