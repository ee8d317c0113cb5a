"""`abqc.compile`: from an ONNX file to a shared library, loaded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from abqc.compiler import job
from abqc.compiler.job import Request
from abqc.runtime.model import Model, load

Progress = Callable[[str, int, int], None]


def compile(
    model: str | Path,
    *,
    quant: str | Path = "none",
    target: str = "cpu",
    output: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dump_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Compile an ONNX model into a shared library and load it.

    `quant` is a recipe (`w4a8`, `w4a4 rotate`, ...) or the path of a file of rules; `shapes` pins
    the shapes of inputs; `output` is where the library goes (default: beside the model, `.so`);
    `dump_dir` receives the IR after every pass; `progress(step, done, total)` is called as work
    goes on. The work is done in another process, whose crash would be an error too. Raises
    AbqcError, whose text says what to do; nothing is written then.
    """
    source = Path(model)
    library = Path(output) if output is not None else source.with_suffix(".so")
    work = Path(tempfile.mkdtemp(prefix="abqc-"))
    try:
        request = Request(
            model=source,
            quant=quant,
            target=target,
            output=library,
            work=work,
            shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
            dump_dir=Path(dump_dir) if dump_dir is not None else None,
        )
        job.run(request, progress or (lambda step, done, total: None))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return load(library)
