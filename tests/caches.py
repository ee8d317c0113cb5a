"""Cache folders for tests that look into them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from abqc.codegen.link import compiled_shim
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.environment import cache_folder


def cache_beside(folder: Path) -> str:
    """Makes `folder` a cache that is empty, but shares what is compiled, shim and kernels, with the
    session's, which ABQC_CACHE must name when this is called."""
    shared = cache_folder()
    with tempfile.TemporaryDirectory() as work:
        compiled_shim(find_compiler(), Path(work))
    (shared / "kernels").mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    for path in (shared / "kernels", *shared.glob("shim-*")):
        (folder / path.name).symlink_to(path)
    return str(folder)
