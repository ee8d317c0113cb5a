"""Where NVIDIA's command-line tools are."""

from __future__ import annotations

import importlib.util
import shutil
from functools import cache
from pathlib import Path

from abqc.runtime.environment import CUDA_HOME


@cache
def find_tool(name: str) -> Path | None:
    """`ptxas`, `nvdisasm`, ...: under CUDA_HOME, on PATH, or in one of NVIDIA's wheels."""
    home = CUDA_HOME.get()
    if home and (path := home / "bin" / name).is_file():
        return path
    if found := shutil.which(name):
        return Path(found)
    return next((path for folder in _wheels() if (path := folder / name).is_file()), None)


@cache
def tool_identity(name: str) -> str:
    """What tells one version of a tool from another: where it is, its size and age."""
    path = find_tool(name)
    if path is None:
        return ""
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _wheels() -> list[Path]:
    """Folders of programs in the wheels, newest toolkit first."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    folders = [folder for root in roots for folder in Path(root).glob("cu*/bin")]
    older = [folder for root in roots for folder in Path(root).glob("cuda_nvcc/bin")]
    return sorted(folders, reverse=True) + older
