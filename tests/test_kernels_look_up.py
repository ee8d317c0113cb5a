"""Strategy look-up against numpy: exact accumulators for every width of activations."""

from __future__ import annotations

import pytest
from abqc.codegen.cpu.look_up.strategy import LookUpStrategy
from abqc.codegen.cpu.look_up.tables import BITS, BYTE_MAX, HALVES, Tables
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.formats import parse_scheme
from kernel_cases import (
    ACTIVATIONS,
    DOT_ISAS,
    Case,
    check_broken_rows,
    check_measured_scales,
    check_packed_rows_are_deterministic,
    check_rotated_rows,
)

LOOK_UP = LookUpStrategy()
each_isa = pytest.mark.parametrize("isa", DOT_ISAS, ids=lambda isa: isa.name)


@each_isa
@pytest.mark.parametrize(
    ("weight", "activation", "m", "n", "k"),
    [
        ("w1:channel", "a8", 1, 65, 300),
        ("w1:asym:channel", "a4", 9, 20, 1030),
        ("w1", "a5", 2, 33, 260),
        ("w1:g33:asym", "a8:token:sym", 3, 17, 100),
        ("w1:g20", "a1", 5, 40, 70),
        ("w1:tensor", "a6:token:sym", 7, 16, 7),
    ],
)
def test_accumulators(isa, weight, activation, m, n, k) -> None:
    case = Case.random(LOOK_UP, isa, weight, activation, m, n, k)
    case.check_accumulators()
    case.check_result()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_largest_sums(activation) -> None:
    """All weights are 1 and all activations their largest codes, for many steps."""
    case = Case.random(LOOK_UP, DOT_ISAS[0], "w1:channel", activation, 1, 17, 2000)
    case.weight.codes[:] = 1
    case.x[:] = abs(case.x)
    case.x[:, 1:] = case.x.max()
    case.check_accumulators()


def test_no_byte_overflows() -> None:
    for highest in range(1, 256):
        tables = Tables(highest)
        most = BITS * highest
        parts = [most] if not tables.split else [(1 << tables.split) - 1, most >> tables.split]
        assert tables.lookups >= HALVES
        assert tables.lookups * max(parts) <= BYTE_MAX


@each_isa
def test_rows(isa) -> None:
    check_broken_rows(LOOK_UP, isa, "a8", "w1:g32")
    check_measured_scales(LOOK_UP, isa, "a4:tensor", "w1:g32")
    check_rotated_rows(LOOK_UP, isa, 96, 32, "w1:g32")


def test_packed_rows_are_deterministic() -> None:
    check_packed_rows_are_deterministic(LOOK_UP, DOT_ISAS[0], "w1:g50")


def test_more_bits_are_refused() -> None:
    spec = MatmulSpec(16, 64, parse_scheme("wt"), parse_scheme("a8"))
    assert "one bit" in str(LOOK_UP.unsupported(spec))


@pytest.mark.parametrize(
    ("weight", "activation", "strategy"),
    [
        ("w1", "a8", "look-up"),
        ("w1", "a4", "look-up"),
        ("w1", "a1", "bitplane"),
        ("w2", "a8", "int8"),
    ],
)
def test_where_it_is_chosen(weight, activation, strategy) -> None:
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), parse_scheme(activation))
    (choice,) = CpuTarget().choose([spec], nodes=["x"], working_set=1 << 30)
    assert choice.strategy.name == strategy
