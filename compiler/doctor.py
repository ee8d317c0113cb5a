"""`abqc doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from abqc import __version__
from abqc.codegen import isa, toolchain
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.compiler.cuda_driver import Cuda, Resolve
from abqc.errors import AbqcError
from abqc.runtime.abi import ABI_VERSION
from abqc.runtime.artifact import FORMAT_VERSION
from abqc.runtime.environment import VARIABLES, cache_folder

PACKAGES = ("numpy", "onnx", "torch-mlir", "llvmlite", "lark")
EXTRAS = {
    "onnxruntime": "for comparisons (bench --against, eval): pip install onnxruntime",
    "ziglang": "a C compiler where the system has none: pip install abqc[toolchain]",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` says what to do where the thing is missing; a finding that
    is not `needed` never fails the report."""

    subject: str
    found: str | None
    remedy: str = ""
    needed: bool = True

    @property
    def ok(self) -> bool:
        return self.found is not None or not self.needed

    def __str__(self) -> str:
        mark = "ok     " if self.found is not None else ("MISSING" if self.needed else "-      ")
        text = self.found if self.found is not None else self.remedy
        return f"{mark}  {self.subject:15}  {text}"


def report() -> tuple[str, bool]:
    """The text, and whether all is there that compiling and running needs."""
    findings = [finding for check in CHECKS for finding in check()]
    return "\n".join(map(str, findings)), all(finding.ok for finding in findings)


def _platform() -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    supported = system == "Linux x86_64"
    remedy = f"this is {system}; abqc needs Linux on x86-64"
    return [
        Finding("abqc", f"{__version__}, format {FORMAT_VERSION}, ABI {ABI_VERSION}"),
        Finding("platform", f"{system}, {platform.release()}" if supported else None, remedy),
        Finding("python", platform.python_version()),
    ]


def _packages() -> list[Finding]:
    found = [Finding(name, _version(name), f"pip install {name}") for name in PACKAGES]
    return found + [
        Finding(name, _version(name), remedy, needed=False) for name, remedy in EXTRAS.items()
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> list[Finding]:
    """A compiler that can make a shared library, which one may lack a linker or a C library for."""
    try:
        compiler = toolchain.find_compiler()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "probe.c").write_text("#include <math.h>\ndouble probe(void) { return 1; }\n")
            compiler.run(
                ["-shared", "-fPIC", "probe.c", "-o", "probe.so", "-lm"],
                directory=folder,
                purpose="build a small library",
            )
        return [Finding("C compiler", compiler.identity().strip())]
    except AbqcError as error:
        hint = "apt: gcc libc6-dev, or pip install abqc[toolchain]"
        text = str(error) if error.hint else f"{error}; {hint}"
        return [Finding("C compiler", None, text)]


def _thread_runtime() -> list[Finding]:
    remedy = "libgomp.so.1 cannot be loaded: apt install libgomp1 (dnf: libgomp)"
    # In a process of its own: other packages bring copies of it along.
    probe = "import ctypes; ctypes.CDLL('libgomp.so.1').GOMP_parallel"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True)
    found = "libgomp.so.1" if result.returncode == 0 else None
    return [Finding("threads", found, remedy)]


def _processor() -> list[Finding]:
    isas = ", ".join(each.name for each in isa.ALL if isa.runs_here(each))
    cores = len(os.sched_getaffinity(0))
    return [Finding("processor", f"{cores} cores, instruction sets {isas}")]


def _settings() -> list[Finding]:
    """The environment variables that are set, where any is."""
    text = ", ".join(f"{v.name}={v.text}" for v in VARIABLES if v.text)
    return [Finding("settings", text)] if text else []


def _cache() -> list[Finding]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"{folder}: {error.strerror}; every compilation builds the shim again (1 s)"
        return [Finding("cache", None, remedy, needed=False)]
    return [Finding("cache", str(folder))]


def _gpu(resolve: Resolve | None = None) -> list[Finding]:
    """The first GPU. `resolve` stands for the driver's library."""
    remedy = "{}; GPU models run with --device ptx-vm, on the CPU"
    try:
        with Cuda(resolve) as cuda:
            major, minor = cuda.capability
            found = f"{cuda.name}, compute capability {major}.{minor}, CUDA {cuda.driver_version}"
        return [Finding("GPU", found)]
    except AbqcError as error:
        return [Finding("GPU", None, remedy.format(error.message), needed=False)]


def _gpu_tools() -> list[Finding]:
    remedies = {
        "ptxas": "GPU artifacts then hold PTX alone: pip install abqc[cuda]",
        "nvdisasm": "for tests of GPU kernels: pip install nvidia-cuda-nvdisasm",
    }
    found = {name: find_tool(name) for name in remedies}
    return [
        Finding(name, str(path) if path else None, remedies[name], needed=False)
        for name, path in found.items()
    ]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _platform,
    _packages,
    _compiler,
    _thread_runtime,
    _processor,
    _settings,
    _cache,
    _gpu,
    _gpu_tools,
)
