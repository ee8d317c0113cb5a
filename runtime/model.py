"""Compiled models in Python: load and run, with numpy alone (and lark for the PTX machine)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import InputError
from .abi import DriverTable, Instance, Library
from .call import Call
from .device import choose
from .device_array import Borrower, DeviceArray
from .dlpack import CUDA, FirstRows, ManagedTensor, expressible
from .element_types import by_name, numpy_dtype, seen_as
from .profile import Profile
from .statistics import RunStatistics
from .tensor_spec import TensorSpec

Arrays = Mapping[str, Any] | Sequence[Any]

SMALL_BYTES = 1 << 14  # of an output that numpy's own memory suits better: it is made faster


def load(
    path: str | Path,
    *,
    device: str | DriverTable | None = None,
    threads: int | None = None,
    verify: bool = True,
    isa: str | None = None,
    separate_buffers: bool = False,
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
    `verify=False` skips the checksum, not the checks of size and version.
    """
    library = Library(path, verify=verify)
    return Model(
        library, device=device, threads=threads, isa=isa, separate_buffers=separate_buffers
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
    ) -> None:
        chosen = choose(device, library.isas(), isa)
        instance = Instance(
            library,
            threads=_thread_count(threads),
            isa=chosen.isa,
            device=chosen.dlpack,
            driver=chosen.driver,
            separate_buffers=separate_buffers or chosen.separate_buffers,
        )
        self._instance: Instance | None = instance
        self._device = chosen
        self.device = chosen.name
        self.path = library.path
        self.manifest = library.manifest
        self.isa = instance.isa
        self.inputs, self.outputs = library.signature()
        self._input_types = [by_name(spec.dtype).dlpack for spec in self.inputs]
        self._output_types = [by_name(spec.dtype).dlpack for spec in self.outputs]
        self._input_dtypes = [numpy_dtype(spec.dtype) for spec in self.inputs]
        self._output_dtypes = [numpy_dtype(spec.dtype) for spec in self.outputs]
        self._input_names = dict.fromkeys(spec.name for spec in self.inputs)
        self._lent = [
            _Lent(spec, sized)
            for spec, sized in zip(self.outputs, library.sized_outputs(), strict=True)
        ]
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
        buffers = _buffers(self.outputs, outputs)
        try:
            call = self._calls.pop()
        except IndexError:
            call = Call(instance, self._input_types, self._output_types)
        try:
            borrower = Borrower(stream)
            kept = self._set_inputs(call, given, borrower)  # copies, others' tensors
            kept += self._set_outputs(call, buffers, borrower)
            address = 0 if profile is None else profile.address
            call.run(instance, _thread_count(threads), target, stream, address)
            del kept
            return [
                self._allocated(instance, call, i, stream) if value is None else value
                for i, value in enumerate(buffers)
            ]
        finally:
            self._calls.append(call)

    def _set_inputs(self, call: Call, values: list[Any], borrower: Borrower) -> list[Any]:
        """Point the call's table to the values; what must live as long as the run."""
        table = call.inputs
        kept: list[Any] = []
        unknown: list[tuple[int, ...] | None] = [None] * len(call.shapes)
        for i, value in enumerate(values):
            if isinstance(value, np.ndarray):
                dtype = self._input_dtypes[i]
                if value.dtype == dtype and table.point(i, value):
                    continue
            call.shapes = unknown
            if isinstance(value, FirstRows):
                table.borrow(i, value)
                continue
            if not isinstance(value, np.ndarray):
                tensor = borrower.take(table, i, self.inputs[i].name, value)
                if tensor is not None:
                    kept.append(tensor)
                    continue
            array = _input_array(self.inputs[i], self._input_dtypes[i], value)
            table.describe(i, array)
            kept.append(array)
        return kept

    def _set_outputs(self, call: Call, values: list[Any], borrower: Borrower) -> list[Any]:
        """The same for buffers, None where the model is to allocate; small ones that will be as
        in the run before are put in their places."""
        table = call.outputs
        kept: list[Any] = []
        for i, value in enumerate(values):
            shape = call.shapes[i]
            if value is None and shape is not None:
                values[i] = made = np.empty(shape, self._output_dtypes[i])
                if not table.point(i, made):
                    table.describe(i, made)
            elif value is None or isinstance(value, FirstRows):
                table.borrow(i, value)
            elif (
                not isinstance(value, np.ndarray)
                and (tensor := borrower.take(table, i, self.outputs[i].name, value)) is not None
            ):
                kept.append(tensor)
            else:
                _check_buffer(self.outputs[i], self._output_dtypes[i], value)
                if not table.point(i, value):
                    table.describe(i, value)
        return kept

    @property
    def statistics(self) -> RunStatistics:
        """How the runs on a GPU went so far: whether they were graphs, and if not, why."""
        return RunStatistics() if self._instance is None else self._instance.statistics()

    def _allocated(self, instance: Instance, call: Call, i: int, stream: int) -> Any:
        """What the model allocated for output i."""
        dtype, lent, address = self._output_dtypes[i], self._lent[i], call.outputs.pointer(i)
        tensor = ManagedTensor.from_address(address)
        if self._device.dlpack[0] == CUDA and tensor.device[0] == CUDA:
            return DeviceArray(instance, dtype, address, stream)
        array = np.asarray(_Allocation(instance.library, lent, address, tensor))
        if lent.sized and array.nbytes <= SMALL_BYTES and self._device.dlpack[0] != CUDA:
            call.shapes[i] = array.shape
        return array if dtype == lent.storage else array.view(dtype)

    def close(self) -> None:
        """Release the model once its runs have ended and its outputs are gone."""
        self._instance = None

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


class _Lent:
    """What is the same for all of an output's allocations."""

    def __init__(self, spec: TensorSpec, sized: bool) -> None:
        self.storage = by_name(spec.dtype).storage
        self.typestr = self.storage.str
        self.sizes = ctypes.c_int64 * len(spec.shape)
        self.sized = sized  # its sizes follow from those of the inputs


class _Allocation:
    """Memory that the model allocated for an output (row-major), lent to numpy, released with the
    array."""

    __slots__ = ("__array_interface__", "_address", "_deleter", "_library")

    def __init__(self, library: Library, lent: _Lent, address: int, tensor: ManagedTensor) -> None:
        self._library = library
        self._address = address
        self._deleter = tensor.deleter
        library.retain()
        self.__array_interface__ = {
            "version": 3,
            "typestr": lent.typestr,
            "shape": tuple(lent.sizes.from_address(tensor.shape)),
            "data": (tensor.data, False),
        }

    def __del__(self) -> None:
        self._library.delete(self._address, self._deleter)
        self._library.release()


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


def _buffers(specs: Sequence[TensorSpec], values: Arrays | None) -> list[Any]:
    if values is None:
        return [None] * len(specs)
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


def _input_array(spec: TensorSpec, dtype: np.dtype, value: Any) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else _as_array(spec, value)
    seen = array if array.dtype == dtype else seen_as(array, spec.dtype)
    if seen is None:
        raise InputError(
            f"input '{spec.name}' is {_describe(array.dtype)}, expected {spec.dtype}",
            hint=_conversion(spec),
        )
    _check_rank("input", spec, seen)
    return expressible(seen)


def _conversion(spec: TensorSpec) -> str:
    codes = by_name(spec.dtype).codes
    if codes is None:
        return f"convert it: .astype('{spec.dtype}')"
    return f"convert it: .astype(ml_dtypes.{spec.dtype}), or give its codes as {codes}"


def _as_array(spec: TensorSpec, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"input '{spec.name}' is no array: {error}") from error


def _check_buffer(spec: TensorSpec, dtype: np.dtype, value: Any) -> None:
    role = "the buffer for output"
    if not isinstance(value, np.ndarray):
        raise InputError(f"{role} '{spec.name}' is no numpy array")
    if value.dtype != dtype and seen_as(value, spec.dtype) is None:
        raise InputError(f"{role} '{spec.name}' is {_describe(value.dtype)}, expected {spec.dtype}")
    if not value.flags.writeable:
        raise InputError(f"{role} '{spec.name}' is read-only")
    _check_rank(role, spec, value)
    if expressible(value) is not value:
        raise InputError(f"{role} '{spec.name}' has strides of partial elements")


def _check_rank(role: str, spec: TensorSpec, array: np.ndarray) -> None:
    if array.ndim != len(spec.shape):
        raise InputError(
            f"{role} '{spec.name}' has rank {array.ndim}, expected {len(spec.shape)}",
            hint=f"expected {spec}",
        )


def _describe(dtype: np.dtype) -> str:
    return dtype.name if dtype.isnative else f"{dtype.name} of foreign byte order"
