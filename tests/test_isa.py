"""Instruction sets as data: what `--cpu` asks for, what a CPU has, kernels of those that extend."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpuid import WORDS, needed_words
from abqc.errors import AbqcError, ArtifactError
from onnx_models import model, node


def names(text: str) -> list[str]:
    return [isa.name for isa in isas.of_cpu(text)]


def test_cpus_are_named() -> None:
    assert names("x86-64-v3") == names("x86-64-v4") == names("avx2") == ["avx2"]
    assert names("x86-64-v2") == ["plain"]
    assert isas.of_cpu("all") == isas.ALL
    assert names("plain, amx") == ["amx", "avx512", "plain"]  # with what tiles are beside
    assert names("avxvnni") == ["avxvnni", "avx2"]
    assert names("amxbf16") == ["amxbf16", "amx", "avx512"]
    native = isas.of_cpu("native")
    assert native[-1] is isas.available()[0] and all(map(isas.runs_here, native))
    for text in ("", "avx3", "avx2,", "x86-64-v9"):
        with pytest.raises(AbqcError, match="names no CPU") as raised:
            isas.of_cpu(text)
        assert "avxvnni" in str(raised.value.hint)


def test_every_flag_has_a_bit() -> None:
    for isa in isas.ALL:
        words = dict(zip(WORDS, needed_words(isa.cpu_flags), strict=True))
        assert sum(w.bit_count() for name, w in words.items() if name != "xcr0") == len(
            isa.cpu_flags
        )
        assert bool(words["xcr0"] & 0xE0) == (isa.vector_bits == 512)
        assert bool(words["xcr0"] & 6) == (isa.vector_bits > 128)


def test_better_ones_need_all_that_the_others_do() -> None:
    needs = {isa.name: set(isa.cpu_flags) for isa in isas.ALL}
    assert needs["amx"] > needs["avx512"] > needs["avx2"] > needs["plain"]
    assert needs["avxvnni"] > needs["avx2"]
    assert needs["amxbf16"] > needs["avx512bf16"] | needs["amx"]
    assert needs["avx512bf16"] > needs["avx512"]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    w = np.random.default_rng(0).standard_normal((70, 33), np.float32)
    proto = model(
        [node("MatMul", "x w", "y")],
        [("x", np.float32, ["n", 70])],
        [("y", np.float32, ["n", 33])],
        {"w": w},
    )
    path = tmp_path_factory.mktemp("isa") / "model.onnx"
    onnx.save(proto, path)
    return path


def test_each_set_of_a_library(product: Path, tmp_path: Path) -> None:
    """They agree but for the rounding of f32, and the best one that the CPU has is taken."""
    library = tmp_path / "all.so"
    abqc.compile(product, quant="w4a8", output=library, cpu="all").close()
    x = np.random.default_rng(1).standard_normal((70, 70), np.float32)
    found = {}
    for isa in isas.ALL:
        if isas.runs_here(isa):
            with abqc.load(library, isa=isa.name) as loaded:
                wide = isa.adds == "bf16"  # of which codes have no kernels
                assert loaded.isa == (isa.extends if wide else isa.name)
                found[isa.name] = loaded.run([x])[0]
        else:
            with pytest.raises(ArtifactError, match=f"this CPU lacks '{isa.name}'"):
                abqc.load(library, isa=isa.name)
    for y in found.values():
        np.testing.assert_allclose(y, found["plain"], rtol=1e-5, atol=1e-4)
    with abqc.load(library) as loaded:
        present = loaded.manifest["isas"]
        assert loaded.isa == next(isa.name for isa in isas.ALL if isa.name in {*found} & {*present})
        assert "avx512bf16" not in present and "amxbf16" not in present


def test_a_library_for_some_cpus(product: Path, tmp_path: Path) -> None:
    sizes = {}
    for cpu in (None, "x86-64-v3", "avxvnni"):
        library = tmp_path / f"{cpu}.so"
        with abqc.compile(product, quant="w4a8", output=library, cpu="plain") as loaded:
            assert loaded.manifest["isas"] == ["plain"]
        with pytest.raises(ArtifactError, match="no kernels for 'avx2'; it has: plain"):
            abqc.load(library, isa="avx2")
        abqc.compile(product, quant="w4a8", output=library, cpu=cpu or "amx,avxvnni,plain").close()
        sizes[cpu] = library.stat().st_size
    assert sizes["x86-64-v3"] < sizes["avxvnni"] < sizes[None]
    with pytest.raises(AbqcError, match="names no CPU"):
        abqc.compile(product, output=tmp_path / "m.so", cpu="pentium")
    with pytest.raises(AbqcError, match="--cpu is about kernels for CPUs"):
        abqc.compile(product, output=tmp_path / "m.so", cpu="native", target="sm_80")
    assert not (tmp_path / "m.so").exists()
