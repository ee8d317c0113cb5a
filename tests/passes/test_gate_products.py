"""Packs are launched with the products that alone they read."""

from __future__ import annotations

import pytest
from abqc.codegen.strategy import Kernel
from abqc.compiler.build import resolve_target
from abqc.dialects.epilogue import Epilogue
from abqc.passes.infrastructure import Unit
from abqc.passes.kernels.launch import WITH_NEXT
from facts import Facts, after

ROWS = 'tensor<?x64x!abq.packed<"rows">>'
Y, PACKED = "tensor<?x96xf32>", 'tensor<?x192x!abq.packed<"a">>'


class Objects:
    on_device = True


class Target:
    """Merges products with the same kernels, and has gates for them, or not."""

    max_norm_columns = 0
    objects = Objects()

    def __init__(self, *, able: bool = True) -> None:
        self.able = able
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def merges_products(self, products: list[list[Kernel]]) -> bool:
        return all(other == products[0] for other in products)

    def gated_product(
        self,
        kernel: Kernel,
        parts: int,
        pack: Kernel,
        prologue: Epilogue,
        order: tuple[int, ...],
        *,
        reduces: bool,
    ) -> Kernel | None:
        self.asked.append((parts, order))
        return Kernel("gated", (1, 64), lambda m, a: None) if self.able else None


def product(name: str, kernel: str = "mm", x: str = "q") -> str:
    return f"""%w{name} = "abq.weight"() {{sym = "{name}"}} : () -> tensor<64x!abq.packed<"w">>
      %{name} = "abq.matmul"(%{x}, %w{name}) {{node = "{name}", kernels = ["{kernel}"],
        max_rows = array<i64: 0>, n = 96 : index, k = 64 : index,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
        : ({ROWS}, tensor<64x!abq.packed<"w">>) -> {Y}
    """


def packed(x: str, *others: str) -> str:
    arguments = ", ".join(["%e: f32", *(f"%{name}e: f32" for name in others)])
    segments = ", ".join(["1"] * (1 + len(others)) + ["0"] * (4 - len(others)))
    reads = ", ".join(['"element"'] * len(others))
    operands = ", ".join(f"%{name}" for name in (x, *others))
    return f"""%p = "abq.fused_pack"({operands}) ({{
      ^bb0({arguments}):
        %z = arith.negf %e : f32
        "abq.yield"(%z) : (f32) -> ()
      }}) {{kernel = "a", reads = [{reads}], operandSegmentSizes = array<i32: {segments}>}}
      : ({", ".join([Y] * (1 + len(others)))}) -> {PACKED}
    """


def launched(
    *body: str, results: str = "%p", types: str = PACKED, target: Target | None = None
) -> list[list[str]]:
    """The names of operations by launch."""
    text = f"""func.func @main(%q: {ROWS}, %r: {ROWS}) -> ({types}) {{
      {"".join(body)}
      return {results} : {types}
    }}"""
    names = {"mm": (1, 64), "other": (1, 32), "a": (4,)}
    kernels = {name: Kernel(name, block, lambda m, a: None) for name, block in names.items()}
    facts: Facts = after(
        text,
        "merge-products",
        "gate-products",
        unit=Unit(target=target or Target(), kernels=kernels),
    )
    found: list[list[str]] = [[]]
    for op in facts.function().regions[0].blocks[0].operations:
        if op.operation.name in ("abq.matmul", "abq.fused_pack"):
            found[-1].append(op.operation.name)
            if WITH_NEXT not in op.operation.attributes:
                found.append([])
    return found[:-1]


MATMUL, PACK = "abq.matmul", "abq.fused_pack"


def test_a_gate_is_launched_with_its_products() -> None:
    target = Target()
    body = product("a"), product("b"), packed("b", "a")
    assert launched(*body, target=target) == [[MATMUL, MATMUL, PACK]]
    assert target.asked == [(2, (1, 0))]


def test_a_function_of_one_product() -> None:
    assert launched(product("a"), packed("a")) == [[MATMUL, PACK]]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ((product("a"), product("b", "other"), packed("b", "a")), [[MATMUL], [MATMUL], [PACK]]),
        ((product("a"), product("b", x="r"), packed("b", "a")), [[MATMUL], [MATMUL], [PACK]]),
        ((product("a"), product("b"), packed("b")), [[MATMUL, MATMUL], [PACK]]),
    ],
    ids=["other kernels", "other rows", "one of two"],
)
def test_products_of_other_launches(body: tuple[str, ...], expected: list[list[str]]) -> None:
    assert launched(*body) == expected


def test_products_that_others_read() -> None:
    body = product("a"), product("b"), packed("b", "a")
    found = launched(*body, results="%p, %a", types=f"{PACKED}, {Y}")
    assert found == [[MATMUL, MATMUL], [PACK]]


def test_a_target_without_such_kernels() -> None:
    body = product("a"), product("b"), packed("b", "a")
    assert launched(*body, target=Target(able=False)) == [[MATMUL, MATMUL], [PACK]]


def test_a_cpu_has_none() -> None:
    body = product("a"), product("b"), packed("b", "a")
    cpu = resolve_target("cpu")
    assert launched(*body, target=cpu) == [[MATMUL, MATMUL], [PACK]]  # type: ignore[arg-type]
