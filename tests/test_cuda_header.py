"""What the shim declares of the driver API against cuda.h, where a CUDA toolkit is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.ptx.driver_api import ERROR_NAMES, SIGNATURES
from abqc.runtime.shim import SHIM_DIRECTORY

CHECK = r"""
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <cuda.h>

// Enumerations are declared as integers, and structures by their first version.
template <class A, class B>
constexpr bool same_shape = std::is_pointer_v<A> == std::is_pointer_v<B> && sizeof(A) == sizeof(B);

template <class F> struct signature;
template <class R, class... A> struct signature<R (*)(A...)> {
    template <class G> struct fits : std::false_type {};
    template <class S, class... B> struct fits<S (*)(B...)> {
        static constexpr bool value = [] {
            if constexpr (sizeof...(A) == sizeof...(B)) return (same_shape<A, B> && ...);
            else return false;
        }();
    };
};

%s

#define CHECK_FUNCTION(name, member, parameters) \
    static_assert(signature<decltype(&name)>::fits<CUresult(*) parameters>::value, #name);
ABQC_CUDA_FUNCTIONS(CHECK_FUNCTION)

%s
"""


def header() -> str:
    return (SHIM_DIRECTORY / "cuda.h").read_text()


def functions_macro(text: str) -> str:
    return re.search(r"#define ABQC_CUDA_FUNCTIONS\(F\).*?[^\\]\n", text, re.DOTALL)[0]


def enumerators(text: str) -> dict[str, str]:
    """Names and numbers that are the driver's."""
    return dict(re.findall(r"\b(CU(?:DA)?_[A-Z_0-9]+) = (\d+)", text))


def checks(text: str) -> str:
    numbers = list(enumerators(text).items()) + [(name, n) for n, name in ERROR_NAMES.items()]
    lines = [f"static_assert({name} == {value}, {name!r});" for name, value in numbers]
    fields = ["func", "gridDimX", "blockDimX", "sharedMemBytes", "kernelParams", "extra"]
    offsets = [0, 8, 20, 32, 40, 48]
    for field, offset in zip(fields, offsets, strict=True):
        lines.append(f"static_assert(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, {field}) == {offset});")
    pool = {"allocType": 0, "handleTypes": 4, "location": 8, "win32SecurityAttributes": 16}
    for field, offset in pool.items():
        lines.append(f"static_assert(offsetof(CUmemPoolProps, {field}) == {offset});")
    lines.append("static_assert(sizeof(CUmemLocation) == 8 && sizeof(CUmemPoolProps) == 88);")
    return "\n".join(lines).replace("'", '"')


@pytest.fixture(scope="module")
def include() -> Path:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda.h").is_file():
            return Path(home) / "include"
    pytest.skip("no cuda.h: no CUDA toolkit is installed")


def compile_check(source: str, include: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (directory / "check.cpp").write_text(source)
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", "check.cpp"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


def test_functions_numbers_and_structures(include: Path, tmp_path: Path) -> None:
    text = header()
    assert len(enumerators(text)) > 20
    result = compile_check(CHECK % (functions_macro(text), checks(text)), include, tmp_path)
    assert result.returncode == 0, result.stderr


def test_differences_are_found(include: Path, tmp_path: Path) -> None:
    text = header()
    wrong = text.replace("(CUdeviceptr *, size_t bytes)", "(CUdeviceptr *, uint32_t bytes)")
    wrong = wrong.replace("CUDA_ERROR_LAUNCH_FAILED = 719", "CUDA_ERROR_LAUNCH_FAILED = 718")
    assert wrong != text
    result = compile_check(CHECK % (functions_macro(wrong), checks(wrong)), include, tmp_path)
    assert "cuMemAlloc_v2" in result.stderr and "CUDA_ERROR_LAUNCH_FAILED" in result.stderr


# Of errors whose description does not have that sentence.
DEVICE_IS_GONE = {
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_UNKNOWN",
}


def fatal_errors(cuda_h: str) -> dict[str, int]:
    """Those after which cuda.h wants the process to end."""
    described = r"/\*\*((?:(?!\*/).)*)\*/\s*(CUDA_ERROR_\w+)\s*=\s*(\d+)"
    return {
        name: int(number)
        for comment, name, number in re.findall(described, cuda_h, re.DOTALL)
        if "terminated and relaunched" in re.sub(r"[\s*]+", " ", comment) or name in DEVICE_IS_GONE
    }


def test_errors_after_which_a_context_is_dead(include: Path, tmp_path: Path) -> None:
    source = r"""
    #include <stdio.h>
    #include "cuda_driver.c"
    int32_t abqc_error(int32_t status, const char *format, ...) { (void)format; return status; }
    int main(void) {
        for (int code = 0; code < 1000; code++)
            if (abqc_cuda_is_sticky(code)) printf("%d\n", code);
        return 0;
    }
    """
    (tmp_path / "sticky.c").write_text(source)
    find_compiler().run(
        [f"-I{SHIM_DIRECTORY}", "sticky.c", "-ldl", "-o", "sticky"],
        directory=tmp_path,
        purpose="compile the test",
    )
    done = subprocess.run([tmp_path / "sticky"], capture_output=True, text=True, check=True)
    fatal = fatal_errors((include / "cuda.h").read_text())
    assert len(fatal) > 12
    assert set(map(int, done.stdout.split())) == set(fatal.values())


def test_the_python_driver_has_what_the_shim_asks_for() -> None:
    names = set(re.findall(r"F\((cu\w+),", functions_macro(header())))
    assert names <= set(SIGNATURES)
