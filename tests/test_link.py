"""Linking: what an artifact exports and needs, and how linking fails."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
from pathlib import Path

import abqc
import handmade
import numpy as np
import pytest
from abqc.codegen import toolchain
from abqc.codegen.elf import FileRange, write_data_object
from abqc.codegen.link import ArtifactMeta, link, meta_source
from abqc.errors import AbqcError, CompileError, ToolchainError
from abqc.runtime.shim import SHIM_DIRECTORY
from abqc.runtime.tensor_spec import TensorSpec
from handmade import build, c_object
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "float32", "float64"]

# Every output is the input of the same number.
COPYING_HOST = """
#include "shim.h"
int32_t abqc_host_main(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        const abqc_view *view = abqc_rt_input(ctx, i);
        abqc_rt_output(ctx, i, view->data, abqc_meta.info.inputs[i].ndim, view->sizes,
                       view->strides);
    }
    return 0;
}
"""


def copying(*specs: TensorSpec, strided: frozenset[str] = frozenset()) -> ArtifactMeta:
    outputs = [TensorSpec(f"{s.name}_out", s.dtype, s.shape) for s in specs]
    return ArtifactMeta(specs, outputs, ("plain",), strided)


def readelf(flag: str, path: Path) -> str:
    return subprocess.run(
        ["readelf", flag, "-W", str(path)], capture_output=True, text=True, check=True
    ).stdout


# ---- what an artifact is ----


def test_one_exported_symbol_and_few_needed_libraries() -> None:
    path = handmade.layer()
    exported = [
        line.split()[7]
        for line in readelf("--dyn-syms", path).splitlines()
        if " GLOBAL " in line and " UND " not in line
    ]
    assert exported == ["abqc_get_api"]
    needed = {
        line.split("[")[1].split("]")[0]
        for line in readelf("-d", path).splitlines()
        if "(NEEDED)" in line
    }
    assert "libgomp.so.1" in needed
    assert needed <= {"libgomp.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0",
                      "ld-linux-x86-64.so.2"}  # fmt: skip
    assert "RWE" not in readelf("-l", path)


def test_shim_is_strict_c(tmp_path: Path) -> None:
    """Not every compiler forgives what gcc warns of: clang refuses a function not declared."""
    flags = ["-std=c11", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SHIM_DIRECTORY}"]
    for source in sorted(SHIM_DIRECTORY.glob("*.c")):
        toolchain.find_compiler().run(
            [*flags, "-c", source, "-o", f"{source.stem}.o"],
            directory=tmp_path,
            purpose=f"compile {source.name} without a warning",
        )


def test_size_without_weights() -> None:
    assert handmade.faults().stat().st_size < 48 << 10


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o27)
    try:
        path = build(tmp_path / "model.so", handmade.FAULTS_HOST, handmade.FAULTS)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert [file.name for file in tmp_path.iterdir()] == ["model.so"]


def test_all_types_and_layouts(tmp_path: Path) -> None:
    specs = [TensorSpec(f"x_{dtype}", dtype, (None, None, 3)) for dtype in DTYPES]
    path = build(tmp_path / "copying.so", COPYING_HOST, copying(*specs))
    random = np.random.default_rng(0)
    with abqc.load(path, threads=2) as model:
        assert [spec.dtype for spec in model.inputs] == DTYPES
        for shape in (2, 4, 3), (0, 4, 3), (300, 70, 3), (1, 1, 3):
            inputs = [random.integers(0, 2, shape).astype(dtype) for dtype in DTYPES]
            buffers = [np.empty(shape[::-1], dtype).T for dtype in DTYPES]
            for outputs in model.run(inputs), model.run(inputs, outputs=buffers):
                for x, y in zip(inputs, outputs, strict=True):
                    assert x.dtype == y.dtype
                    np.testing.assert_array_equal(x, y)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_copies_between_strided_tensors(data: st.DataObject) -> None:
    """Any permutation, step and direction of any rank on both sides, accepted or made compact."""
    rank = data.draw(st.integers(0, 5))
    shape = data.draw(st.tuples(*[st.integers(0, 7)] * rank))

    def strided() -> np.ndarray:
        order = data.draw(st.permutations(range(rank)))
        steps = data.draw(st.tuples(*[st.sampled_from([-2, -1, 1, 3])] * rank))
        base = np.zeros([shape[d] * abs(steps[d]) for d in order], np.float32)
        axes = np.argsort(order).astype(int)
        return base.transpose(axes)[(*(slice(None, None, step) for step in steps), ...)]

    x, y = strided(), strided()
    x[...] = np.arange(x.size).reshape(x.shape)
    for path in _copiers(rank):
        with abqc.load(path, threads=2, verify=False) as model:
            (out,) = model.run([x], outputs=[y])
            np.testing.assert_array_equal(out, x)


def _copiers(rank: int) -> list[Path]:
    spec = TensorSpec("x", "float32", (None,) * rank)
    paths = []
    for name, strided in ("compact", frozenset()), ("strided", frozenset({"x"})):
        path = handmade.folder() / f"copier_{name}_{rank}.so"
        if not path.exists():
            build(path, COPYING_HOST, copying(spec, strided=strided))
        paths.append(path)
    return paths


def test_large_copies_are_shared_by_threads(tmp_path: Path) -> None:
    path = _copiers(2)[1]
    x = np.random.default_rng(0).standard_normal((1500, 1000), dtype=np.float32)
    with abqc.load(path, threads=2) as model:
        for view in x, x.T, x[::2, ::3], x[:, :700], x[:1]:
            np.testing.assert_array_equal(model.run([view])[0], view)


def test_names_of_any_characters(tmp_path: Path) -> None:
    names = ['"quoted"', "back\\slash", "what??/is", "größe 1", "\n", "a" * 300]
    specs = [TensorSpec(name, "float32", (f"dim {name}",)) for name in names]
    path = build(tmp_path / "names.so", COPYING_HOST, copying(*specs), manifest={"größe": '"\\\n'})
    with abqc.load(path) as model:
        assert model.inputs == specs
        assert model.manifest == {"größe": '"\\\n'}


def test_no_inputs_and_no_outputs(tmp_path: Path) -> None:
    path = build(tmp_path / "nothing.so", COPYING_HOST, copying())
    with abqc.load(path) as model:
        assert model.run({}) == [] == model.run([], outputs=[])


@pytest.mark.slow
def test_more_than_two_gigabytes_of_weights(tmp_path: Path) -> None:
    size = (5 << 30) // 2
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(size)
        file.seek(size - 4)
        file.write(np.float32(42).tobytes())
    host = """
    #include "shim.h"
    extern const char w_huge[], w_after[];
    int32_t abqc_host_main(abqc_ctx *ctx) {
        abqc_rt_output(ctx, 0, w_huge + SIZEl - 4, 0, NULL, NULL);
        abqc_rt_output(ctx, 1, w_after, 0, NULL, NULL);
        return 0;
    }
    """.replace("SIZE", str(size))
    meta = ArtifactMeta(
        [], [TensorSpec("a", "float32", ()), TensorSpec("b", "float32", ())], ("plain",)
    )
    after = np.float32([43])
    entries = [("w_huge", FileRange(tmp_path / "zeros", 0, size)), ("w_after", after)]
    objects = [
        c_object(tmp_path, "host", host),
        c_object(tmp_path, "kernels_plain", handmade.NO_KERNELS.replace("ISA", "plain")),
        tmp_path / "weights.o",
    ]
    write_data_object(objects[2], entries)
    link(objects, tmp_path / "model.so", meta=meta, manifest={})
    with abqc.load(tmp_path / "model.so") as model:
        assert [float(x) for x in model.run([])] == [42, 43]


# ---- how it fails ----


def fails(output: Path, error: type[AbqcError], message: str, objects: list[Path] | None = None):
    before = set(output.parent.iterdir()) if output.parent.is_dir() else set()
    with pytest.raises(error, match=message) as caught:
        link(objects or [], output, meta=handmade.FAULTS, manifest={})
    assert "\n" not in str(caught.value)
    after = set(output.parent.iterdir()) if output.parent.is_dir() else set()
    assert before == after


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    fails(tmp_path / "absent" / "model.so", AbqcError, "there is no directory")
    fails(tmp_path, AbqcError, "it is a directory")
    # /proc takes no files; /proc/self/task does not either, and no other process changes it.
    fails(Path("/proc/self/task/model.so"), AbqcError, "cannot write '/proc/self/task/model.so'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    fails(tmp_path / "model.so", AbqcError, "is not writable")


def test_missing_symbols_are_named(tmp_path: Path) -> None:
    fails(tmp_path / "model.so", ToolchainError, "failed to link the model.*abqc_host_main")


def test_broken_object(tmp_path: Path) -> None:
    broken = tmp_path / "broken.o"
    broken.write_bytes(b"\x7fELF is not enough")
    fails(tmp_path / "model.so", ToolchainError, "failed to link the model.*broken.o", [broken])


def test_old_artifact_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_text("the old one")
    fails(tmp_path / "model.so", ToolchainError, "failed to link")
    assert (tmp_path / "model.so").read_text() == "the old one"


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "ziglang" else find_spec(n, *a)
    )
    fails(tmp_path / "model.so", ToolchainError, r"no C compiler.*pip install abqc\[toolchain\]")


def test_compiler_named_by_cc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    fails(tmp_path / "model.so", ToolchainError, "no C compiler 'no-such-compiler'; CC names it")
    monkeypatch.setenv("CC", "gcc -m64")
    assert toolchain.find_compiler().command == ("gcc", "-m64")


def test_ziglang_serves_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang")
    assert toolchain.find_compiler().command[1:] == ("-P", "-m", "ziglang", "cc")


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null"])
def test_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    path = build(tmp_path / "model.so", handmade.FAULTS_HOST, handmade.FAULTS)
    assert abqc.load(path).run([np.array(0)])[0] == 0


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (
            ArtifactMeta([], [], ()),
            "needs kernels for some of amxbf16, amx, .*, avx2, plain; got none",
        ),
        (ArtifactMeta([], [], ("neon",)), "neon"),
        (
            copying(TensorSpec("x", "float32", (1,) * 9)),
            "'x' has rank 9; an artifact takes up to 8",
        ),
        (copying(TensorSpec("x", "str", ())), "'x' has type str"),
        (copying(TensorSpec("x", "float9", ())), "'x' has type float9"),
    ],
)
def test_signatures_that_cannot_be(meta: ArtifactMeta, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        meta_source(meta)


def test_sources_are_compiled_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zig makes one object of all sources that a command names (`duplicate symbol` when linked)."""
    compiler = tmp_path / "one-source-cc"
    compiler.write_text(
        "#!/bin/sh\ncount=0\n"
        'for a in "$@"; do case "$a" in *.c) count=$((count + 1));; esac; done\n'
        'test $count -le 1 || { echo "error: $count sources" >&2; exit 1; }\nexec cc "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path / "cache"))
    path = build(tmp_path / "model.so", handmade.FAULTS_HOST, handmade.FAULTS)
    assert abqc.load(path).run([np.array(0)])[0] == 0
