"""Segments as libraries, compiled in processes of their own, also before they are needed."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from abqc.codegen.kernel_job import RunningJob
from abqc.compiler.recipe import Recipe
from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore
from abqc.errors import CompileError
from abqc.runtime.tensor_spec import TensorSpec

from .dataflow import ValueId
from .runs import build_segment
from .segments import extract


@dataclass(frozen=True)
class Library:
    """A compiled part of the model: its file in the folder, names of what it takes and gives."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What of the model to compile: what computes `wanted` from its inputs and values `given`.

    To values that are `noisy` another input is added (`segments.extract`).
    """

    module: ir.Operation
    model_inputs: Sequence[TensorSpec]
    given: Sequence[ValueId]
    wanted: Sequence[ValueId]
    recipe: Recipe
    store: WeightStore
    work: Path
    noisy: Sequence[ValueId] = ()

    def compile(self) -> bytes:
        """The bytes of the library, with the names of what it takes and gives; pickled."""
        segment = extract(self.module, self.model_inputs, self.given, self.wanted, self.noisy)
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            # What is packed here is for this library alone, and the caller may be writing codes.
            store = self.store.beside(Path(name) / "weights")
            library = build_segment(segment, self.recipe, store, Path(name))
            content = library.read_bytes()
        names = [tuple(spec.name for spec in specs) for specs in (segment.inputs, segment.outputs)]
        return pickle.dumps((content, *names))


@dataclass(frozen=True)
class _Parts:
    """Parts that one process compiles."""

    parts: Sequence[Part]

    isa_name = "segment's"  # in the message of a process that fails

    def compile(self) -> bytes:
        return pickle.dumps([part.compile() for part in self.parts])


class Libraries:
    """Parts of one model as libraries in a folder, which the caller may remove.

    Leaving the `with` block ends what is being compiled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, RunningJob] = {}
        self._count = 0

    def begin(self, parts: Sequence[Part]) -> int:
        """Start to compile in a fork of this process; the number that `finish` takes.

        It sees the weight store as it is now: codes that are made later it does not.
        """
        self._count += 1
        number = self._count
        self._running[number] = RunningJob(_Parts(parts), self._folder / f"parts{number}.pickle")
        return number

    def finish(self, number: int) -> list[Library]:
        """Wait for the libraries. Raises what the compile did."""
        job = self._running.pop(number)
        try:
            compiled = job.finish().read_bytes()
        except CompileError:
            # Here the error comes as it was raised, if it is not that the process died.
            compiled = job.job.compile()
        finally:
            job.stop()
            job.path.unlink(missing_ok=True)
        return [self._library(each) for each in pickle.loads(compiled)]

    def compile(self, part: Part) -> Library:
        """A library, compiled in this process: a fork takes longer where it is waited for, and
        those that come later have all that was loaded on the way."""
        return self._library(part.compile())

    def _library(self, compiled: bytes) -> Library:
        content, inputs, outputs = pickle.loads(compiled)
        self._count += 1
        file = f"segment{self._count}.so"
        (self._folder / file).write_bytes(content)
        return Library(file, inputs, outputs)

    def __enter__(self) -> Libraries:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for job in self._running.values():
            job.stop()
        self._running.clear()
