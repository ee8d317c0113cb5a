"""From objects to an artifact: meta table and shim compiled, all linked, the trailer appended.

The result appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import AbqcError, CompileError
from ..runtime.artifact import append_trailer
from ..runtime.dlpack import MAX_RANK
from ..runtime.element_types import by_name
from ..runtime.environment import cache_folder
from ..runtime.shim import SHIM_DIRECTORY
from ..runtime.tensor_parameter import ELEMENTS, SWIZZLES, Extent, TensorParameter
from . import isa as isas
from .cpuid import needed_words
from .elf import write_data_object
from .size_expressions import Term, parse
from .toolchain import CCompiler, find_compiler

ENTRY_POINT = "abqc_get_api"

_COMPILE = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-c")
_LINK = (
    "-shared",
    "-nostartfiles",
    "-Wl,--version-script=exports.map",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,defs",
    "-Wl,--as-needed",
)
_LIBRARIES = ("-lm", "-ldl", "-lpthread")

# Of the shim's sources, those for artifacts that run on CPUs; those for GPUs are cuda_*.c, the
# others are for both.
_CPU_SOURCES = frozenset({"arena", "cpu", "cpu_device", "host", "huge_pages", "team"})

# The thread runtime is linked by its name alone, so that no development package is needed.
_THREADS_NAME = "libgomp.so.1"
_THREADS_STUB = """\
void GOMP_parallel(void) {}
void omp_get_thread_num(void) {}
void omp_get_num_threads(void) {}
"""


class Spec(Protocol):
    """A TensorSpec: sizes are numbers, names of symbols, or None."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...


@dataclass(frozen=True)
class GpuBlock:
    """A block of threads of a kernel: how many, and its bytes of dynamic shared memory."""

    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class GpuImage:
    """The code for one GPU target: symbols of its PTX (NUL-terminated) and of its cubin, if any.

    `specific`: it runs on exactly this compute capability (the suffix `a`). `blocks`: of every
    kernel of the artifact, by number; a kernel may take more shared memory on one target than on
    another. `waits`: every kernel waits for those that it depends on, before it touches anything
    but weights, so that it can be launched before they have ended.
    """

    name: str
    capability: tuple[int, int]
    specific: bool
    ptx: str
    blocks: tuple[GpuBlock, ...]
    cubin: str | None = None
    cubin_bytes: int = 0
    waits: bool = False


@dataclass(frozen=True)
class GpuKernelEntry:
    """What a kernel is on all targets: its name, and `slots`, its number of 8-byte parameters.

    `accesses`: by parameter, ABQC_ACCESS_* of runtime/shim/shim.h; None: nothing is known. `maps`:
    the tensor maps behind these.
    """

    name: str
    slots: int
    accesses: tuple[int, ...] | None = None
    maps: tuple[TensorParameter, ...] = ()


@dataclass(frozen=True)
class GpuMeta:
    """The targets of a GPU artifact, and its kernels by number, the builtin ones last."""

    images: tuple[GpuImage, ...]
    kernels: tuple[GpuKernelEntry, ...]


@dataclass(frozen=True)
class ArtifactMeta:
    """What the shim must know of a model.

    `isas`: those whose table `abqc_kernels_<isa>` is among the objects; none for GPUs, whose
    code `gpu` describes. `strided_inputs`: names of the inputs that the host function takes with
    any strides; others are made compact first. `sized_outputs`: names of the outputs whose sizes
    follow from those of the inputs. `weights`: the data objects that a GPU gets copies
    of, by their first symbol and bytes (as `write_data_object` returns them). `messages`: of the
    checks in kernels, by number.
    """

    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    isas: Sequence[str] = ()
    strided_inputs: frozenset[str] = frozenset()
    sized_outputs: frozenset[str] = frozenset()
    gpu: GpuMeta | None = None
    weights: Sequence[tuple[str, int]] = ()
    messages: Sequence[str] = ()


def link(
    objects: Iterable[Path],
    output: str | Path,
    *,
    meta: ArtifactMeta,
    manifest: Mapping[str, Any],
    partial: Path | None = None,
    debug: bool = False,
) -> None:
    """Link `objects` (host, kernels, weights) and the shim into the artifact `output`.

    `partial`, in the same directory, is its name until it is whole (default: a fresh name);
    `debug` keeps the symbol table. ToolchainError without a C compiler or when it fails; AbqcError
    when `output` cannot be written. Nothing is left behind then.
    """
    output = Path(output)
    check_writable(output)
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="abqc-link-") as name:
        work = Path(name)
        shim = compiled_shim(compiler, work)
        (work / "meta.c").write_text(meta_source(meta))
        include = f"-I{SHIM_DIRECTORY}"
        compiler.run(
            [*_COMPILE, include, "meta.c"], directory=work, purpose="compile the meta table"
        )
        text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
        write_data_object(work / "manifest.o", [("abqc_manifest", text + b"\0")])
        (work / "exports.map").write_text(f"{{ global: {ENTRY_POINT}; local: *; }};\n")
        inputs = [
            *(path.resolve() for path in objects),
            work / "meta.o",
            work / "manifest.o",
            *_shim_objects(shim, gpu=meta.gpu is not None),
        ]
        with _replacing(output, partial) as unfinished:
            flags = _LINK if debug else (*_LINK, "-s")
            compiler.run(
                [*flags, "-o", unfinished, *inputs, *_LIBRARIES],
                directory=work,
                purpose="link the model",
            )
            append_trailer(unfinished, dict(manifest))


def check_writable(output: Path) -> None:
    """AbqcError unless a file can be made there; worth asking before a long compilation."""
    folder = output.resolve().parent
    if output.is_dir():
        raise AbqcError(f"cannot write '{output}': it is a directory")
    if not folder.is_dir():
        raise AbqcError(f"cannot write '{output}': there is no directory '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise AbqcError(f"cannot write '{output}': the directory '{folder}' is not writable")


class _replacing:
    """A file beside `target` that takes its place at the end, or vanishes on an error."""

    def __init__(self, target: Path, partial: Path | None) -> None:
        self.target = target
        self.partial = partial or target.parent / f".{target.name}.{secrets.token_hex(4)}"

    def __enter__(self) -> Path:
        try:
            self.partial = self.partial.resolve()
            os.close(os.open(self.partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise AbqcError(f"cannot write '{self.target}': {error.strerror}") from error
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> None:
        try:
            if kind is None:
                self.partial.chmod(0o777 & ~_umask())
                os.replace(self.partial, self.target)
        except OSError as failure:
            raise AbqcError(f"cannot write '{self.target}': {failure.strerror}") from failure
        finally:
            self.partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


# ---- the shim, compiled once for each compiler ----


def compiled_shim(compiler: CCompiler, work: Path) -> Path:
    """A directory with the shim's objects and the stub of the thread runtime; from the cache folder
    if they are there, else made in `work` and put there."""
    sources = sorted(SHIM_DIRECTORY.glob("*.c"))
    key = _shim_key(compiler, sources)
    cached = cache_folder() / f"shim-{key}"
    if cached.is_dir():
        return cached
    made = work / "shim"
    made.mkdir()

    from concurrent.futures import ThreadPoolExecutor  # which most compiles do without

    def compile_source(path: Path) -> None:
        # One at a time: zig joins the sources of one command into one object.
        compiler.run(
            [*_COMPILE, f"-I{SHIM_DIRECTORY}", path, "-o", f"{path.stem}.o"],
            directory=made,
            purpose=f"compile the shim ({path.name})",
        )

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compile_source, sources))
    (work / "threads.c").write_text(_THREADS_STUB)
    soname = f"-Wl,-soname,{_THREADS_NAME}"
    compiler.run(
        ["-shared", "-fPIC", "-nostdlib", soname, "-o", made / _THREADS_NAME, "threads.c"],
        directory=work,
        purpose="make a stub of the thread runtime",
    )
    return _keep(made, cached)


def _shim_objects(shim: Path, *, gpu: bool) -> list[Path]:
    """What artifacts for CPUs, or for GPUs, are linked with."""
    found = sorted(shim.glob("*.o"))
    if gpu:
        return [path for path in found if path.stem not in _CPU_SOURCES]
    cpu = [path for path in found if not path.stem.startswith("cuda_")]
    return [*cpu, shim / _THREADS_NAME]


def _shim_key(compiler: CCompiler, sources: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"{compiler.identity()} {_COMPILE} {_THREADS_STUB}".encode())
    for path in [*sources, *sorted(SHIM_DIRECTORY.glob("*.h"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _keep(made: Path, cached: Path) -> Path:
    """Put a directory into the cache; where that fails, it serves this one time."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".shim-", dir=cached.parent))
        shutil.copytree(made, staging, dirs_exist_ok=True)
        try:
            staging.rename(cached)
        except OSError:  # another process was faster
            shutil.rmtree(staging, ignore_errors=True)
    except OSError:
        return made
    return cached if cached.is_dir() else made


# ---- the meta table ----


def meta_source(meta: ArtifactMeta) -> str:
    """The C source of `abqc_meta`."""
    _check(meta)
    symbols = _Symbols()
    lines = ['#include "shim.h"', "extern const char abqc_manifest[];"]
    lines += [f"extern const abqc_kernel abqc_kernels_{isa}[];" for isa in meta.isas]
    strided = dict.fromkeys(meta.strided_inputs, "ABQC_TENSOR_STRIDED")
    sized = dict.fromkeys(meta.sized_outputs, "ABQC_TENSOR_SIZED")
    inputs = _tensor_table("inputs", meta.inputs, symbols, lines, strided)
    outputs = _tensor_table("outputs", meta.outputs, symbols, lines, sized)
    _expressions(meta, symbols, lines)
    names = ", ".join(_c_string(name) for name in symbols.names) or '""'
    lines.append(f"static const char *const symbols[] = {{{names}}};")
    present = [isa.name for isa in isas.ALL if isa.name in meta.isas]
    lines.append(_isa_table(present))
    device = f"    .isa_count = {len(isas.ALL)}, .isas = isas,"
    if meta.gpu is not None:
        present = [image.name for image in meta.gpu.images]
        device = f"    .gpu = {_gpu_table(meta.gpu, meta.weights, lines)},"
    if meta.messages:
        texts = ",\n    ".join(_c_string(text) for text in meta.messages)
        lines.append(f"static const char *const messages[] = {{\n    {texts}}};")
        device += f"\n    .message_count = {len(meta.messages)}, .messages = messages,"
    lines += [
        "const abqc_meta_table abqc_meta = {",
        "    .expressions = expressions,",
        f"    .info = {{.input_count = {len(meta.inputs)}, .output_count = {len(meta.outputs)},",
        f"             .symbol_count = {len(symbols.names)}, .inputs = {inputs},",
        f'             .outputs = {outputs}, .symbols = symbols, .isas = "{" ".join(present)}",',
        "             .manifest = abqc_manifest},",
        device,
        "};",
    ]
    return "\n".join(lines) + "\n"


def _isa_table(present: Sequence[str]) -> str:
    """All instruction sets, with the kernels of those that are `present`."""
    names = [isa.name for isa in isas.ALL]
    rows = []
    for isa in isas.ALL:
        needs = ", ".join(f"{word:#x}" for word in needed_words(isa.cpu_flags))
        extends = -1 if isa.extends is None else names.index(isa.extends)
        kernels = f"abqc_kernels_{isa.name}" if isa.name in present else "NULL"
        rows.append(f'    {{"{isa.name}", {{{needs}}}, {extends}, {kernels}}},')
    return "\n".join(["static const abqc_isa isas[] = {", *rows, "};"])


class _Symbols:
    """Numbers for symbolic sizes; every nameless one gets its own."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def dim(self, size: int | str | None) -> int:
        if isinstance(size, int):
            return size
        if size is not None and size in self.names:
            return -1 - self.names.index(size)
        self.names.append(size or "")
        return -len(self.names)


def _tensor_table(
    table: str,
    specs: Sequence[Spec],
    symbols: _Symbols,
    lines: list[str],
    flags: Mapping[str, str],
) -> str:
    rows = []
    for i, spec in enumerate(specs):
        dtype = by_name(spec.dtype).dlpack
        dims = "NULL"
        if len(spec.shape):
            dims = f"{table}_{i}"
            sizes = ", ".join(str(symbols.dim(size)) for size in spec.shape)
            lines.append(f"static const int64_t {dims}[] = {{{sizes}}};")
        rows.append(
            f"    {{{_c_string(spec.name)}, {{{dtype.code}, {dtype.bits}, {dtype.lanes}}}, "
            f"{len(spec.shape)}, {flags.get(spec.name, '0')}, {dims}}},"
        )
    if not rows:
        return "NULL"
    lines += [f"static const abqc_tensor_info {table}[] = {{", *rows, "};"]
    return table


def _expressions(meta: ArtifactMeta, symbols: _Symbols, lines: list[str]) -> None:
    """The table `expressions`: for each symbol, what its size must be; {0} for names."""
    own = {size for spec in meta.inputs for size in spec.shape if isinstance(size, str)}
    parsed = {size: parse(size, own) for size in own}
    rows = []
    for number, name in enumerate(symbols.names):
        terms = parsed.get(name)
        if terms is None or not _names_alone(terms, parsed):
            rows.append("{0}")
            continue
        for i, term in enumerate(terms):
            factors = ", ".join(str(symbols.names.index(n)) for n in term.names)
            lines.append(f"static const int32_t factors_{number}_{i}[] = {{{factors or 0}}};")
        table = ", ".join(
            f"{{{term.factor}, {len(term.names)}, factors_{number}_{i}}}"
            for i, term in enumerate(terms)
        )
        lines.append(f"static const abqc_term terms_{number}[] = {{{table}}};")
        rows.append(f"{{{len(terms)}, terms_{number}}}")
    lines.append(f"static const abqc_expression expressions[] = {{{', '.join(rows) or '{0}'}}};")


def _names_alone(terms: Sequence[Term], parsed: Mapping[str, object]) -> bool:
    """Whether all sizes in an expression are names, not expressions themselves."""
    return all(parsed.get(name) is None for term in terms for name in term.names)


def _gpu_table(gpu: GpuMeta, weights: Sequence[tuple[str, int]], lines: list[str]) -> str:
    """The initializer of an abqc_gpu_table, after the declarations that it needs."""
    symbols = [symbol for image in gpu.images for symbol in (image.ptx, image.cubin) if symbol]
    symbols += [symbol for symbol, _ in weights]
    lines += [f"extern const char {symbol}[];" for symbol in symbols]
    for number, image in enumerate(gpu.images):
        blocks = ", ".join(f"{{{b.threads}, {b.shared_bytes}}}" for b in image.blocks)
        lines.append(f"static const abqc_gpu_block blocks_{number}[] = {{{blocks or '{0}'}}};")
    tables = {
        "image": [_image_row(number, image) for number, image in enumerate(gpu.images)],
        "kernel": [_kernel_row(k, number, lines) for number, k in enumerate(gpu.kernels)],
        "weight": [f"{{{symbol}, {size}}}" for symbol, size in weights],
    }
    fields = []
    for name, rows in tables.items():
        fields.append(f".{name}_count = {len(rows)}, .{name}s = ")
        if not rows:
            fields[-1] += "NULL"
            continue
        lines += [f"static const abqc_gpu_{name} gpu_{name}s[] = {{"]
        lines += [*(f"    {row}," for row in rows), "};"]
        fields[-1] += f"gpu_{name}s"
    return "{" + ", ".join(fields) + "}"


def _image_row(number: int, image: GpuImage) -> str:
    major, minor = image.capability
    return (
        f"{{{major}, {minor}, {int(image.specific)}, {_c_string(image.name)}, "
        f"{image.ptx}, {image.cubin or 'NULL'}, {image.cubin_bytes}, blocks_{number}, "
        f"{int(image.waits)}}}"
    )


def _kernel_row(kernel: GpuKernelEntry, number: int, lines: list[str]) -> str:
    accesses = maps = "NULL"
    if kernel.accesses:
        accesses = f"accesses_{number}"
        numbers = ", ".join(str(int(access)) for access in kernel.accesses)
        lines.append(f"static const uint8_t {accesses}[] = {{{numbers}}};")
    if kernel.maps:
        maps = f"maps_{number}"
        rows = ", ".join(map(_map_row, kernel.maps))
        lines.append(f"static const abqc_gpu_map {maps}[] = {{{rows}}};")
    name = _c_string(kernel.name)
    return f"{{{name}, {kernel.slots}, {accesses}, {len(kernel.maps)}, {maps}}}"


def _map_row(parameter: TensorParameter) -> str:
    def extents(several: Sequence[Extent]) -> str:
        pairs = (f"{{{-1 if e.slot is None else e.slot}, {e.factor}}}" for e in several)
        return "{" + ", ".join(pairs) + "}"

    box = "{" + ", ".join(map(str, parameter.box)) + "}"
    return (
        f"{{{parameter.pointer}, {ELEMENTS[parameter.element]}, {SWIZZLES[parameter.swizzle]}, "
        f"{parameter.rank}, {extents(parameter.sizes)}, {extents(parameter.strides)}, {box}}}"
    )


def _c_string(text: str) -> str:
    """A C string literal; bytes outside printable ASCII as octal escapes, which cannot run on."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'


def _check(meta: ArtifactMeta) -> None:
    known = [isa.name for isa in isas.ALL]
    unknown = sorted(set(meta.isas) - set(known))
    if meta.gpu is not None:
        if meta.isas or not meta.gpu.images:
            raise CompileError("an artifact for GPUs needs an image, and no kernels for CPUs")
        assert all(len(image.blocks) == len(meta.gpu.kernels) for image in meta.gpu.images)
    elif unknown or not meta.isas:
        got = ", ".join(unknown) or "none"
        raise CompileError(f"an artifact needs kernels for some of {', '.join(known)}; got {got}")
    for spec in (*meta.inputs, *meta.outputs):
        if len(spec.shape) > MAX_RANK:
            raise CompileError(
                f"'{spec.name}' has rank {len(spec.shape)}; an artifact takes up to {MAX_RANK}"
            )
        try:
            by_name(spec.dtype)
        except ValueError as error:
            raise CompileError(
                f"'{spec.name}' has type {spec.dtype}, which no input or output can have"
            ) from error
