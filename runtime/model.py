"""Compiled models in Python: load and run, with numpy alone (and lark for the PTX machine)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from .abi import DriverTable, Instance, Library
from .bound import Bound
from .call import Call, Signature
from .device import choose
from .device_array import Borrower
from .dlpack import CUDA
from .profile import Profile
from .statistics import RunStatistics
from .tensor_spec import TensorSpec

Arrays = Mapping[str, Any] | Sequence[Any]


def load(
    path: str | Path,
    *,
    device: str | DriverTable | None = None,
    threads: int | None = None,
    verify: bool = True,
    isa: str | None = None,
    separate_buffers: bool = False,
    huge_pages: bool = False,
) -> Model:
    """Open a compiled model; ArtifactError unless the file is whole and of this version.

    `device`: "cpu", "cuda", "cuda:1", or "ptx-vm" ("ptx-vm:sm_80"), which executes the GPU's code
    on the CPU, slowly and checked; None: what the model was compiled for. A driver in Python
    (`abqc.runtime.ptx.driver`) is a device too. DeviceError where there is no such device.
    `threads`: of every run, unless it says otherwise; None: ABQC_NUM_THREADS, else the usable
    cores. `isa`: one of the model's instruction sets; None: ABQC_ISA, else the CPU's best. For
    a GPU the target whose code to use ("sm_80"); None: the best.
    `separate_buffers`: on a GPU every buffer of a run is an allocation of its own, so that what
    checks memory (compute-sanitizer) sees one step too far; slow. The PTX machine always has it so.
    `huge_pages`: on a CPU weights lie in pages of 2 MiB, so that what reads all of them in every
    run (text, token by token) takes 4 to 8 % less time; AbqcError where the system has none. They
    are the file's own pages where its file system can do that, which takes reading it once more;
    else a copy of this process, which takes 0.2 s and 140 MB for a model of 140 MB.
    `verify=False` skips the checksum, not the checks of size and version.
    """
    library = Library(path, verify=verify)
    if huge_pages:
        library.check_huge_pages()
    return Model(
        library,
        device=device,
        threads=threads,
        isa=isa,
        separate_buffers=separate_buffers,
        huge_pages=huge_pages,
    )


class Model:
    """A loaded model. May be run from several threads at once.

    `inputs` and `outputs` are the signature in order, `manifest` says how it was compiled.
    `device` is where it runs: "cpu", "cuda:0", "ptx-vm".
    """

    def __init__(
        self,
        library: Library,
        *,
        device: str | DriverTable | None = None,
        threads: int | None = None,
        isa: str | None = None,
        separate_buffers: bool = False,
        huge_pages: bool = False,
    ) -> None:
        chosen = choose(device, library.isas(), isa)
        instance = Instance(
            library,
            threads=_thread_count(threads),
            isa=chosen.isa,
            device=chosen.dlpack,
            driver=chosen.driver,
            separate_buffers=separate_buffers or chosen.separate_buffers,
            huge_pages=huge_pages,
        )
        self._instance: Instance | None = instance
        self._device = chosen
        self.device = chosen.name
        self.path = library.path
        self.manifest = library.manifest
        self.isa = instance.isa
        self.inputs, self.outputs = library.signature()
        self._signature = Signature(self.inputs, self.outputs, library.sized_outputs())
        self._input_names = dict.fromkeys(spec.name for spec in self.inputs)
        self._calls: list[Call] = []  # that no run uses

    def run(
        self,
        inputs: Arrays,
        *,
        threads: int | None = None,
        outputs: Arrays | None = None,
        device: str | None = None,
        stream: int = 0,
        profile: Profile | None = None,
    ) -> list[Any]:
        """Run the model: a dict by name or a list in order in, the list of outputs out.

        Inputs are read where they lie; their types must be exact. Arrays in `outputs` (None or
        absent: allocated) are filled and returned in their places. No two of them may share
        elements (that is not checked), nor may they overlap inputs, with one exception: a cache
        that comes back grown may start where it came from (`past = cache[:, :, :n]`,
        `present = cache[:, :, :n + 1]`), and only the new part is written.

        A model on a GPU takes arrays on the host and, through DLPack, tensors on that GPU, in any
        mixture. Outputs that it allocates are numpy arrays, or `DeviceArray`s where an input is on
        the GPU; `device` ("cpu", "cuda") says otherwise. `stream` is a CUstream (PyTorch's
        `torch.cuda.current_stream().cuda_stream`): when all tensors are on the GPU and no kernel
        checks data (indices), the work is then put into it and not waited for.

        `profile` is filled with the launches of the run; on a CPU alone.

        InputError names the tensor that is wrong.
        """
        instance = self._instance
        if instance is None:
            raise InputError(f"the model '{self.path}' is closed")
        if profile is not None and "launches" not in self.manifest:
            raise InputError(
                f"launches of '{self.path}' cannot be timed",
                hint="compile it again for the CPU, with this version",
            )
        target = self._device.of_outputs(device)
        if isinstance(inputs, dict) and inputs.keys() == self._input_names.keys():
            given = [inputs[name] for name in self._input_names]
        else:
            given = _in_order("input", self.inputs, inputs)
        try:
            call = self._calls.pop()
        except IndexError:
            call = Call(instance, self._signature)
        try:
            count = 0 if threads is None else _thread_count(threads)
            if outputs is None and profile is None:
                made = call.repeat(given)
                if made is not None:
                    call.run(count, target, stream, 0)
                    return made
            absent = [None] * len(self.outputs)
            buffers = absent if outputs is None else _buffers(self.outputs, outputs)
            borrower = Borrower(stream)
            kept = call.set_inputs(enumerate(given), borrower)  # copies, others' tensors
            kept += call.set_outputs(buffers, borrower)
            address = 0 if profile is None else profile.address
            call.run(count, target, stream, address)
            del kept
            own = self._device.dlpack[0]
            return [
                call.allocated(i, own, stream) if value is None else value
                for i, value in enumerate(buffers)
            ]
        finally:
            self._calls.append(call)
            if self._instance is None:  # it was closed meanwhile, and calls have the instance
                self._calls.clear()

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Bound:
        """The model with these tensors, by name, in all runs, on a CPU: `Bound.run` takes the other
        inputs and gives the other outputs. What `run` says of both holds. The tensors, and the
        model, are kept as long as the result is.

        InputError names the tensor that is wrong.
        """
        if self._instance is None:
            raise InputError(f"the model '{self.path}' is closed")
        if self._device.dlpack[0] == CUDA:
            raise InputError(f"tensors cannot be bound: the model runs on {self.device}")
        _refuse_unknown("input", self.inputs, inputs)
        _refuse_unknown("output", self.outputs, outputs)
        return Bound(self._instance, self._signature, inputs, outputs)

    @property
    def statistics(self) -> RunStatistics:
        """How the runs on a GPU went so far: whether they were graphs, and if not, why."""
        return RunStatistics() if self._instance is None else self._instance.statistics()

    def close(self) -> None:
        """Release the model once its runs have ended and its outputs are gone."""
        self._instance = None
        self._calls.clear()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<abqc.Model '{self.path}': ({inputs}) -> ({outputs})>"


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return 0
    if threads < 1:
        raise InputError(f"the number of threads is {threads}, expected at least 1")
    return threads


def _names(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)


def _in_order(role: str, specs: Sequence[TensorSpec], values: Arrays) -> list[Any]:
    """Values by name, or already in order; InputError unless they are exactly the specs'."""
    if not isinstance(values, Mapping):
        if len(values) != len(specs):
            raise InputError(
                f"{len(values)} {role}s, expected {len(specs)}", hint=f"they are {_names(specs)}"
            )
        return list(values)
    _refuse_unknown(role, specs, values)
    for spec in specs:
        if spec.name not in values:
            raise InputError(f"{role} '{spec.name}' is missing", hint=f"expected {spec}")
    return [values[spec.name] for spec in specs]


def _buffers(specs: Sequence[TensorSpec], values: Arrays) -> list[Any]:
    if not isinstance(values, Mapping):
        return _in_order("output", specs, values)
    _refuse_unknown("output", specs, values)
    return [values.get(spec.name) for spec in specs]


def _refuse_unknown(role: str, specs: Sequence[TensorSpec], values: Mapping[str, Any]) -> None:
    known = {spec.name for spec in specs}
    for name in values:
        if name not in known:
            raise InputError(
                f"the model has no {role} '{name}'", hint=f"its {role}s are {_names(specs)}"
            )
