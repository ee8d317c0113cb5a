"""`abqc.compile`: from an ONNX file to a shared library."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abqc.compiler import job
from abqc.compiler.job import Request
from abqc.errors import CompileError, DeviceError, PerformanceWarning

from .fork_server import remove

if TYPE_CHECKING:
    from abqc.runtime.model import Model

Progress = Callable[[str, int, int], None]
Arrays = Mapping[str, Any]
Calib = str | Path | Arrays | Iterable[Arrays]


def compile(
    model: str | Path,
    *,
    quant: str | Path = "none",
    target: str = "cpu",
    output: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dump_dir: str | Path | None = None,
    calib: Calib | None = None,
    calib_workers: str | int | None = None,
    budget: str | None = None,
    cpu: str | None = None,
    strict: bool = False,
    last_logits: bool = False,
    progress: Progress | None = None,
    device: str | None = None,
) -> Model:
    """Compile an ONNX model into a shared library and load it.

    As `compile_file`, whose library is loaded on `device` (`abqc.load` has the names). A model
    compiled for a GPU that is not here stays on the disk: DeviceError says so.
    """
    library = compile_file(
        model,
        quant=quant,
        target=target,
        output=output,
        shapes=shapes,
        dump_dir=dump_dir,
        calib=calib,
        calib_workers=calib_workers,
        budget=budget,
        cpu=cpu,
        strict=strict,
        last_logits=last_logits,
        progress=progress,
    )
    from abqc.runtime.model import load

    try:
        return load(library, device=device)
    except DeviceError as error:
        raise DeviceError(
            f"{library} was written, but cannot be loaded here: {error.message}",
            hint='run it where there is such a GPU, or compile with device="ptx-vm", which '
            "executes its kernels on the CPU",
        ) from error


def compile_file(
    model: str | Path,
    *,
    quant: str | Path = "none",
    target: str = "cpu",
    output: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dump_dir: str | Path | None = None,
    calib: Calib | None = None,
    calib_workers: str | int | None = None,
    budget: str | None = None,
    cpu: str | None = None,
    strict: bool = False,
    last_logits: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Compile an ONNX model into a shared library; its path.

    `target` is `cpu`, a GPU (`sm_90a`), several (`sm_80,sm_90a`) or `cuda`. `quant` is a recipe
    (`w4a8`, `w4a4 rotate`, ...) or the path of a file of rules; `shapes` pins the shapes of inputs;
    `output` is where the library goes (default: beside the model, `.so`); `calib` is data to
    calibrate with: an .npz file or a folder of them, arrays by input name whose first axis counts
    samples, or a dict or an iterable of dicts of such arrays; `calib_workers` is how many processes
    work on them (default: ABQC_NUM_THREADS, else the usable cores), or the scheduler of a cluster
    ("dask:tcp://host:8786"), which changes no code; `budget` ("4bpw", "size=60MB",
    "latency=12ms@input_ids=1x128") gives each product its own width, so that all take no more than
    that, and writes the recipe beside the library; `cpu` narrows the CPUs that the library has
    kernels for ("native": this one; "x86-64-v3"; instruction sets such as "avx512,avx2"; default:
    ABQC_CPU, else all), and makes it smaller; `strict` makes an error of what the recipe asks
    for and the model does not allow, which is a note without; `last_logits` makes a decoder's
    output `logits` that of the last token alone, which is what generating text reads and saves the
    product with the vocabulary for all others of a prompt (not with `calib`, which wants all of
    them, and such a library cannot be evaluated); `dump_dir` receives the IR after
    every pass; `progress(step, done, total)` is called as work goes on, and `note(text)` at the
    end for what will run, but slowly (default: a PerformanceWarning). The work is done in another
    process, whose crash would be an error too. Raises AbqcError, whose text says what to do;
    nothing is written then.
    """
    source = Path(model)
    library = Path(output) if output is not None else source.with_suffix(".so")
    work = _work_directory()
    request = Request(
        model=source,
        quant=quant,
        target=target,
        output=library,
        work=work,
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        dump_dir=Path(dump_dir) if dump_dir is not None else None,
        calib=_calibration_files(calib, work),
        calib_workers=calib_workers,
        budget=budget,
        cpu=cpu,
        strict=strict,
        last_logits=last_logits,
    )
    try:
        notes = job.run(request, progress or (lambda step, done, total: None))
    finally:
        remove(request.work)
        remove(request.partial)
    for text in notes:
        (note or _warn)(text)
    return library


def _work_directory() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="abqc-"))
    except OSError as error:
        raise CompileError(
            f"cannot make a temporary folder: {error.strerror or error}",
            hint="TMPDIR names the folder where it would be",
        ) from error


def _calibration_files(calib: Calib | None, work: Path) -> Path | None:
    if calib is None or isinstance(calib, str | Path):
        return None if calib is None else Path(calib)
    from .calibration.samples import write_samples

    return write_samples(calib, work / "calibration")


def _warn(text: str) -> None:
    warnings.warn(text, PerformanceWarning, stacklevel=3)
