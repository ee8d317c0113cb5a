"""Machine code of the kernels that scan, select from and search lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from abqc.codegen.gpu.arch import ALL, GpuArch
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.lines import order_keys, scan
from abqc.codegen.gpu.lines.arg_extreme import arg_extreme_kernels
from abqc.codegen.gpu.lines.top_k import top_k_kernels
from abqc.codegen.strategy import Variant
from gpu_kernels import SAMPLE, spills

# Of an element; which of both orders is taken makes no difference to registers.
FAMILIES: dict[str, tuple[Sequence[str], Callable[[str], tuple[Variant, ...]]]] = {
    "scan": (scan.ELEMENTS, scan.scan_kernels),
    "top_k": (order_keys.ELEMENTS, lambda e: top_k_kernels(e, largest=e != "f32")),
    "arg_extreme": (order_keys.ELEMENTS, lambda e: arg_extreme_kernels(e, largest=e != "i64")),
}

pytestmark = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
@pytest.mark.parametrize("arch", SAMPLE, ids=lambda arch: arch.name)
def test_sample_assembles_without_spills(arch: GpuArch, family: str) -> None:
    _, made = FAMILIES[family]
    assert not spills(arch, *(v.kernel for e in ("f32", "i64") for v in made(e)))


@pytest.mark.slow
@each_family
@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
def test_all_assemble_without_spills(arch: GpuArch, family: str) -> None:
    elements, made = FAMILIES[family]
    assert not spills(arch, *(v.kernel for e in elements for v in made(e)))
