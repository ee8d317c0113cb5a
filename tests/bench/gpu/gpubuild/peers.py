"""A folder of other engines for `build.py --peers`, of their authors' archives; needs no GPU.

    pip download --no-deps --no-binary :all: auto-gptq==0.7.1 gptqmodel==4.0.0 gemlite==0.6.0.post2
    pip download --no-deps humming-kernels==0.1.20
    python gpubuild/peers.py ARCHIVES FOLDER
    PYTHONPATH=<unpacked humming> python gpubuild/humming_cubins.py FOLDER

(auto-gptq and gptqmodel want BUILD_CUDA_EXT=0 in the environment, and no build isolation.) nvcc
compiles Marlin's kernel, which auto-gptq has, and QQQ's, which gptqmodel has, with the entry points
below; GemLite and humming go as Python packages. What is not among the archives is left out.
"""

from __future__ import annotations

import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

NVCC = "nvcc -shared -cudart static -Xcompiler -fPIC -std=c++17 -O3 -w --expt-relaxed-constexpr"
ARCH = "-gencode arch=compute_90,code=sm_90 -DNDEBUG"

MARLIN = """
#include "kernel.inc"
extern "C" int peer_marlin(const void* a, const void* b, void* c, void* s, int m, int n, int k,
                           void* space, int group, int device, void* stream, int parallel) {
  int status = marlin_cuda(a, b, c, s, m, n, k, space, group, device, (cudaStream_t) stream,
                           -1, -1, -1, parallel);
  return status ? status : 1000 * (int) cudaGetLastError();
}
"""

QQQ = """
#include "kernel.inc"
extern "C" int peer_qqq(const void* a, const void* b, void* c, void* d, const void* s1,
                        const void* s2, const void* s3, int m, int n, int k, void* space,
                        int group, int device, void* stream, int parallel) {
  int status = qqq_cuda(a, b, c, d, s1, s2, s3, m, n, k, space, group, device,
                        (cudaStream_t) stream, -1, -1, -1, parallel);
  return status ? status : 1000 * (int) cudaGetLastError();
}
"""


def main() -> None:
    archives, folder = map(Path, sys.argv[1:3])
    folder.mkdir(parents=True, exist_ok=True)
    if text := _source(archives, "auto_gptq-*.tar.gz", "marlin/marlin_cuda_kernel.cu"):
        own = text.replace('#include "marlin_cuda_kernel.cuh"', "")
        _compile(own, MARLIN, folder / "libmarlin.so.xz")
    if text := _source(archives, "gptqmodel-*.tar.gz", "qqq/qqq_gemm.cu"):
        _compile(_without_torch(text), QQQ, folder / "libqqq.so.xz")
    for archive in archives.glob("gemlite-*.tar.gz"):
        _pack(_of_tar(archive, "gemlite"), folder / "gemlite.zip")
    for archive in archives.glob("humming_kernels-*.whl"):
        _pack(_of_zip(archive), folder / "humming.zip")


def _source(archives: Path, pattern: str, path: str) -> str:
    """The text of a file of the archive; "" where there is none."""
    for archive in archives.glob(pattern):
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                if member.name.endswith(path):
                    data = file.extractfile(member)
                    assert data is not None
                    return data.read().decode()
    return ""


def _without_torch(text: str) -> str:
    """The kernel and its launcher, not the function that takes PyTorch's tensors."""
    kept = text[: text.index("void qqq_gemm(")]
    for header in ("<torch/extension.h>", "<ATen/cuda/CUDAContext.h>", '"qqq_gemm.h"'):
        kept = kept.replace(f"#include {header}\n", "")
    open_blocks = kept.count("#if") - kept.count("#endif")
    return "#include <cassert>\n" + kept + "\n#endif" * open_blocks


def _compile(kernel: str, entry: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "kernel.inc").write_text(kernel)
        (scratch / "entry.cu").write_text(entry)
        command = f"{NVCC} {ARCH} -o library.so entry.cu"
        subprocess.run(command.split(), cwd=scratch, check=True)
        target.write_bytes(lzma.compress((scratch / "library.so").read_bytes(), preset=9))


Files = Iterable[tuple[str, bytes, int]]  # names in the package, contents, modes


def _of_tar(archive: Path, package: str) -> Files:
    """Python files, the licence and the schedules that were tuned on an H100."""
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            name = member.name.partition("/")[2]
            wanted = name.startswith(f"{package}/") and name.endswith((".py", "/h100.json"))
            if member.isfile() and (wanted or name == "LICENSE"):
                data = file.extractfile(member)
                assert data is not None
                yield name, data.read(), member.mode


def _of_zip(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            if not entry.is_dir():
                yield entry.filename, file.read(entry), entry.external_attr >> 16


def _pack(files: Files, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data, mode in files:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (mode or 0o644) << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
