"""What a run hands over to the C interface, kept and used again.

Entering a run of a small model would cost more than the run if everything were made anew: two
tables of tensors, the options, and what the outputs look like.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from ..errors import InputError
from .abi import Instance, Library
from .aligned import empty_aligned
from .device_array import Borrower, DeviceArray
from .dlpack import CUDA, FirstRows, ManagedTensor, TensorTable, expressible
from .element_types import by_name, numpy_dtype, seen_as
from .tensor_spec import TensorSpec

# Of an output that numpy's own memory suits better: it is made faster. Above UNALIGNED_BYTES it is
# aligned as kernels write, so that nothing is copied; what is larger than SMALL_BYTES is memory of
# the model's, which keeps its pages (runtime/shim/output.c).
SMALL_BYTES = 1 << 22
UNALIGNED_BYTES = 1 << 14


class Signature:
    """A model's inputs and outputs, and what all its runs need to know of them."""

    def __init__(
        self, inputs: list[TensorSpec], outputs: list[TensorSpec], sized: Sequence[bool]
    ) -> None:
        """`sized`: of each output, whether its sizes follow from those of the inputs."""
        self.inputs = inputs
        self.outputs = outputs
        self.input_types = [by_name(spec.dtype).dlpack for spec in inputs]
        self.output_types = [by_name(spec.dtype).dlpack for spec in outputs]
        self.input_dtypes = [numpy_dtype(spec.dtype) for spec in inputs]
        self.output_dtypes = [numpy_dtype(spec.dtype) for spec in outputs]
        self.lent = [_Lent(*output) for output in zip(outputs, sized, strict=True)]


class Call:
    """Inputs, outputs and options of one run at a time."""

    def __init__(self, instance: Instance, signature: Signature) -> None:
        self._instance = instance
        self._signature = signature
        self._inputs = TensorTable(signature.input_types)
        self._outputs = TensorTable(signature.output_types, managed=True)
        self._options = instance.run_options()
        self._arguments = instance.run_arguments(
            *(self._inputs.address, len(signature.inputs)),
            *(self._outputs.address, len(signature.outputs)),
            self._options,
        )
        self._set = (0, (0, 0), 0, 0)
        # Of small outputs of the last run, whose inputs had the layouts that the table describes.
        self._shapes: list[tuple[int, ...] | None] = [None] * len(signature.outputs)

    def repeat(self, values: list[Any]) -> list[np.ndarray] | None:
        """Point the tables to inputs that are arrays as in the last run, and to new arrays for its
        outputs, all of which were small; these, or None where that is not so."""
        if None in self._shapes:
            return None
        point, dtypes = self._inputs.point, self._signature.input_dtypes
        for i, value in enumerate(values):
            if type(value) is not np.ndarray or value.dtype is not dtypes[i] or not point(i, value):
                return None
        table, made = self._outputs, []
        for i, shape in enumerate(self._shapes):
            assert shape is not None
            array = _empty(shape, self._signature.output_dtypes[i])
            if not table.point(i, array):
                table.describe(i, array)
            made.append(array)
        return made

    def set_inputs(self, values: Iterable[tuple[int, Any]], borrower: Borrower) -> list[Any]:
        """Point the table to values by index; what must live as long as the run."""
        table, specs, dtypes = self._inputs, self._signature.inputs, self._signature.input_dtypes
        kept: list[Any] = []
        unknown: list[tuple[int, ...] | None] = [None] * len(self._shapes)
        for i, value in values:
            own = isinstance(value, np.ndarray) and (
                value.dtype is dtypes[i] or value.dtype == dtypes[i]
            )
            if own and table.point(i, value):
                continue
            self._shapes = unknown  # at once: a value may be refused
            if isinstance(value, FirstRows):
                table.borrow(i, value)
                continue
            if not isinstance(value, np.ndarray):
                tensor = borrower.take(table, i, specs[i].name, value)
                if tensor is not None:
                    kept.append(tensor)
                    continue
            array = _input_array(specs[i], dtypes[i], value)
            table.describe(i, array)
            kept.append(array)
        return kept

    def set_outputs(self, values: list[Any], borrower: Borrower) -> list[Any]:
        """The same for the buffers of all outputs, None where the model is to allocate; small ones
        that will be as in the run before are put in their places."""
        table, specs, dtypes = self._outputs, self._signature.outputs, self._signature.output_dtypes
        kept: list[Any] = []
        for i, value in enumerate(values):
            shape = self._shapes[i]
            if value is None and shape is not None:
                values[i] = made = _empty(shape, dtypes[i])
                if not table.point(i, made):
                    table.describe(i, made)
            elif value is None or isinstance(value, FirstRows):
                table.borrow(i, value)
            elif (
                not isinstance(value, np.ndarray)
                and (tensor := borrower.take(table, i, specs[i].name, value)) is not None
            ):
                kept.append(tensor)
            else:
                _check_buffer(specs[i], dtypes[i], value)
                if not table.point(i, value):
                    table.describe(i, value)
        return kept

    def clear_outputs(self, indices: Iterable[int]) -> None:
        """The model is to allocate these."""
        for i in indices:
            self._outputs.borrow(i, None)

    def run(self, threads: int, device: tuple[int, int], stream: int, profile: int) -> None:
        """`Instance.run` on the tables as they are."""
        wanted = (threads, device, stream, profile)
        options = self._options
        if wanted != self._set:
            options.threads = threads
            options.device.device_type, options.device.device_id = device
            options.stream, options.profile = stream or None, profile or None
            self._set = wanted
        self._instance.run(self._arguments, options)

    def allocated(self, i: int, device: int, stream: int) -> Any:
        """What the model, which runs on this type of device, allocated for output i."""
        dtype, lent = self._signature.output_dtypes[i], self._signature.lent[i]
        address = self._outputs.pointer(i)
        tensor = ManagedTensor.from_address(address)
        if device == CUDA and tensor.device[0] == CUDA:
            return DeviceArray(self._instance, dtype, address, stream)
        array = np.asarray(_Allocation(self._instance.library, lent, address, tensor))
        if lent.sized and array.nbytes <= SMALL_BYTES and device != CUDA:
            self._shapes[i] = array.shape
        return array if dtype == lent.storage else array.view(dtype)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that is not initialized, for an output."""
    small = prod(shape) * dtype.itemsize <= UNALIGNED_BYTES
    return np.empty(shape, dtype) if small else empty_aligned(shape, dtype)


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
