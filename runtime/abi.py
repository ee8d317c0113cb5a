"""The C interface of an artifact (`shim/abqc.h`) in ctypes."""

from __future__ import annotations

import _ctypes
import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..errors import AbqcError, ArtifactError, DeviceError, InputError
from .artifact import open_artifact, read_manifest, read_trailer, verify_checksum
from .dlpack import DType
from .element_types import by_dlpack
from .statistics import OLDER_SIZE, RunStatistics, StatisticsTable
from .tensor_spec import Dim, TensorSpec

ABI_VERSION = 1

_ERRORS: dict[int, type[AbqcError]] = {
    1: InputError,  # argument
    2: InputError,  # input
    3: InputError,  # output buffer
    4: InputError,  # device
    5: ArtifactError,  # instruction set
    6: AbqcError,  # memory
    7: InputError,  # a check inside the model
    8: AbqcError,  # internal
    9: DeviceError,  # launch
}
_DEVICE_STATUS = 4
_INTERRUPTED_STATUS = 10
_INTERRUPTIBLE = 1  # a flag of a run
_SIZED = 2  # a flag of an output
_SEPARATE_BUFFERS, _HUGE_PAGES = 1, 2  # flags of an instance


class _DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLDevice(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _TensorInfo(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", _DLDataType),
        ("ndim", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class _ModelInfo(ctypes.Structure):
    _fields_ = [
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("symbol_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(_TensorInfo)),
        ("outputs", ctypes.POINTER(_TensorInfo)),
        ("symbols", ctypes.POINTER(ctypes.c_char_p)),
        ("isas", ctypes.c_char_p),
        ("manifest", ctypes.c_char_p),
    ]


class _InstanceOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("device", _DLDevice),
        ("isa", ctypes.c_char_p),
        ("driver", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
    ]


class RunOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("device", _DLDevice),
        ("stream", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("profile", ctypes.c_void_p),
    ]


class _Api(ctypes.Structure):
    _fields_ = [
        ("abi_version", ctypes.c_uint32),
        ("struct_size", ctypes.c_uint32),
        ("last_error", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("model_info", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))),
        (
            "create",
            ctypes.CFUNCTYPE(
                ctypes.c_int32, ctypes.POINTER(_InstanceOptions), ctypes.POINTER(ctypes.c_void_p)
            ),
        ),
        ("destroy", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)),
        (
            "isa",
            ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_char_p)),
        ),
        (
            "run",
            ctypes.CFUNCTYPE(
                ctypes.c_int32,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.POINTER(RunOptions),
            ),
        ),
        (
            "statistics",
            ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(StatisticsTable)),
        ),
    ]


_Run = ctypes.CFUNCTYPE(ctypes.c_int32)
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# What is mapped now, by device and inode: the loader would hand out the old image for a file that
# was written over in place.
_mapped: dict[tuple[int, int], list[int]] = {}  # [checksum, number of libraries]
_mapped_lock = threading.RLock()  # the collector of garbage may release one while it is held
_opened = itertools.count()


class Library:
    """An artifact opened with dlopen; closed when the last reference to it goes.

    The loader knows libraries by the path they were opened with, and would return the old one for a
    file that has been replaced. So it gets a path of the descriptor that was never used before:
    what is opened is what was verified.
    """

    def __init__(self, path: str | Path, *, verify: bool = True) -> None:
        self.path = Path(path)
        self._users = 1
        self._handle = 0
        self._file: BinaryIO | None = None
        self._key: tuple[int, int] | None = None
        self._deleters: dict[int, Callable[[int], None]] = {}
        self._file = open_artifact(self.path)
        trailer = read_trailer(self._file, self.path)
        if verify:
            verify_checksum(self._file, self.path, trailer)
        self.manifest: dict[str, Any] = read_manifest(self._file, self.path, trailer)
        self._register(trailer.checksum)
        self._open()

    def _register(self, checksum: int) -> None:
        assert self._file is not None
        stat = os.fstat(self._file.fileno())
        key = (stat.st_dev, stat.st_ino)
        with _mapped_lock:
            entry = _mapped.get(key, [checksum, 0])
            if entry[0] != checksum:
                raise ArtifactError(
                    f"'{self.path}' was written over while an older model of it is loaded",
                    hint="close that model first, or write to a new file and rename it",
                )
            entry[1] += 1
            _mapped[key] = entry
            self._key = key

    def _open(self) -> None:
        assert self._file is not None
        name = _unused_path(self._file.fileno())
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            text = str(error).replace(name, str(self.path))
            hint = "install libgomp (apt: libgomp1)" if "libgomp" in text else None
            raise ArtifactError(f"cannot load '{self.path}': {text}", hint=hint) from error
        self._handle = library._handle
        get_api = library.abqc_get_api
        get_api.argtypes, get_api.restype = [ctypes.c_uint32], ctypes.POINTER(_Api)
        table = get_api(ABI_VERSION)
        if not table:
            raise ArtifactError(
                f"'{self.path}' does not have version {ABI_VERSION} of the C interface",
                hint="compile the model again",
            )
        self._api = table.contents
        # Of arguments that are ctypes' own nothing needs to be converted.
        self._run = _Run(ctypes.cast(self._api.run, ctypes.c_void_p).value or 0)

    @property
    def has_statistics(self) -> bool:
        """Whether its table ends with the function for them."""
        return self._api.struct_size > _Api.statistics.offset

    @property
    def instance_options_size(self) -> int:
        """How much of the options of an instance it knows: flags are as old as the statistics."""
        known = self.has_statistics
        return ctypes.sizeof(_InstanceOptions) if known else _InstanceOptions.flags.offset

    @property
    def run_options_size(self) -> int:
        """How much of the options of a run it knows: older ones know no profile, or no flags."""
        if self.manifest.get("profiles", False):
            return ctypes.sizeof(RunOptions)
        known = self.manifest.get("interruptible", False)
        return (RunOptions.profile if known else RunOptions.flags).offset

    def check_huge_pages(self) -> None:
        """InputError where it has no weights in huge pages: on a GPU, and in older artifacts."""
        if not self.manifest.get("huge_pages", False):
            raise InputError(
                f"'{self.path}' does not take huge pages",
                hint="compile the model for the CPU, with this version",
            )

    def __del__(self) -> None:
        self.release()

    def retain(self) -> None:
        """Keep the library open until `release`. Whatever calls its code when it goes must: the
        collector of garbage finalizes objects that refer to each other in any order."""
        with _mapped_lock:
            self._users += 1

    def release(self) -> None:
        """Take `retain` back; the last one closes the library."""
        with _mapped_lock:
            self._users -= 1
            if self._users:
                return
            if self._key is not None:
                _mapped[self._key][1] -= 1
                if not _mapped[self._key][1]:
                    del _mapped[self._key]
        if self._handle:
            _ctypes.dlclose(self._handle)
        if self._file is not None:
            self._file.close()

    def error(self, status: int) -> AbqcError:
        """What a status code of the last call on this thread stands for."""
        text = (self._api.last_error() or b"").decode(errors="replace")
        return _ERRORS.get(status, AbqcError)(text or f"error {status}")

    def check(self, status: int) -> None:
        """Raise it, unless it stands for success."""
        if status:
            raise self.error(status)

    def isas(self) -> tuple[str, ...]:
        """The ISAs of the kernels: instruction sets, or targets of a GPU (`sm_90a`)."""
        return tuple((self._info().isas or b"").decode().split())

    def _info(self) -> _ModelInfo:
        address = ctypes.c_void_p()
        self.check(self._api.model_info(ctypes.byref(address)))
        return _ModelInfo.from_address(address.value or 0)

    def signature(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs."""
        info = self._info()
        symbols = [info.symbols[i].decode() or None for i in range(info.symbol_count)]
        inputs = [_spec(info.inputs[i], symbols) for i in range(info.input_count)]
        outputs = [_spec(info.outputs[i], symbols) for i in range(info.output_count)]
        return inputs, outputs

    def sized_outputs(self) -> list[bool]:
        """For each output, whether its sizes follow from those of the inputs."""
        info = self._info()
        return [bool(info.outputs[i].flags & _SIZED) for i in range(info.output_count)]

    def delete(self, tensor: int, deleter: int) -> None:
        """Release a DLManagedTensor."""
        function = self._deleters.get(deleter)
        if function is None:
            function = self._deleters[deleter] = _Deleter(deleter)
        function(tensor)


class DriverTable(Protocol):
    """A CUDA driver in Python (`runtime/ptx/driver.py`): the address of a function that resolves
    its names, what a call of this thread raised, and whether it wants every buffer of a run as an
    allocation of its own, whose bounds it checks."""

    @property
    def resolver(self) -> int: ...
    @property
    def separate_buffers(self) -> bool: ...
    def take_fault(self) -> BaseException | None: ...


class Instance:
    """An instance of a library; destroyed when the last reference to it goes.

    `device` is DLPack's type and number, (0, 0) for what the model was compiled for. `driver`
    stands in for the CUDA driver. `separate_buffers`: every buffer of a run on a GPU is an
    allocation of its own. `huge_pages`: weights lie in pages of 2 MiB. DeviceError where there is
    no such device.
    """

    def __init__(
        self,
        library: Library,
        *,
        threads: int = 0,
        isa: str | None = None,
        device: tuple[int, int] = (0, 0),
        driver: DriverTable | None = None,
        separate_buffers: bool = False,
        huge_pages: bool = False,
    ) -> None:
        self.library = library
        self.driver = driver
        self._pointer = ctypes.c_void_p()
        options = _InstanceOptions(
            struct_size=library.instance_options_size,
            threads=threads,
            device=_DLDevice(*device),
            isa=isa.encode() if isa else None,
            driver=driver.resolver if driver is not None else None,
            flags=separate_buffers * _SEPARATE_BUFFERS | huge_pages * _HUGE_PAGES,
        )
        status = library._api.create(ctypes.byref(options), ctypes.byref(self._pointer))
        if status == _DEVICE_STATUS:
            raise DeviceError(
                str(library.error(status)),
                hint='device "ptx-vm" (--device ptx-vm) executes its kernels on the CPU',
            )
        self._check(status)
        library.retain()

    def __del__(self) -> None:
        if self._pointer:
            self.library._api.destroy(self._pointer)
            self.library.release()

    def _check(self, status: int) -> None:
        """As Library.check; what the driver raised in Python comes first."""
        fault = self.driver.take_fault() if self.driver is not None else None
        if status == _INTERRUPTED_STATUS:
            raise KeyboardInterrupt(f"the run of '{self.library.path}' was interrupted")
        if status:
            error = self.library.error(status)
            raise error if fault is None else fault from error

    @property
    def isa(self) -> str:
        """The ISA of the kernels in use."""
        name = ctypes.c_char_p()
        self.library.check(self.library._api.isa(self._pointer, ctypes.byref(name)))
        return (name.value or b"").decode()

    def statistics(self) -> RunStatistics:
        """How its runs went; of artifacts compiled before there was this, what they know."""
        if not self.library.has_statistics:
            return RunStatistics()
        get = self.library._api.statistics
        table = StatisticsTable(struct_size=ctypes.sizeof(StatisticsTable))
        if get(self._pointer, ctypes.byref(table)):
            table.struct_size = OLDER_SIZE
            self.library.check(get(self._pointer, ctypes.byref(table)))
        return RunStatistics.of(table)

    def run_options(self) -> RunOptions:
        """Options for `run`, to be set and kept: threads of the instance, its own device."""
        return RunOptions(struct_size=self.library.run_options_size)

    def run_arguments(
        self, inputs: int, input_count: int, outputs: int, output_count: int, options: RunOptions
    ) -> tuple[Any, ...]:
        """What `run` takes, for any number of runs, of arrays of pointers to tensors, given by
        their addresses. They and the options must live as long."""
        return (
            self._pointer,
            *(ctypes.c_void_p(inputs), ctypes.c_int32(input_count)),
            *(ctypes.c_void_p(outputs), ctypes.c_int32(output_count)),
            ctypes.byref(options),
        )

    def run(self, arguments: tuple[Any, ...], options: RunOptions) -> None:
        """abqc_api.run. In the main thread Ctrl-C ends the run: KeyboardInterrupt."""
        # Python calls handlers of signals in its main thread alone.
        options.flags = _INTERRUPTIBLE if threading.get_ident() == _main.ident else 0
        status = self.library._run(*arguments)
        if status or self.driver is not None:
            self._check(status)


class _Main:
    """The main thread; asking for it in every run would take a good part of a small model's."""

    def __init__(self) -> None:
        self.note()
        os.register_at_fork(after_in_child=self.note)  # after that of `threading`

    def note(self) -> None:
        self.ident = threading.main_thread().ident


_main = _Main()


def _unused_path(descriptor: int) -> str:
    """The path of a descriptor, spelled with a new combination of "//" and "/." each time."""
    digits = format(next(_opened), "b").replace("0", "//").replace("1", "/.")
    return f"/proc/self/fd{digits}/{descriptor}"


def _spec(info: Any, symbols: list[str | None]) -> TensorSpec:
    dims: list[Dim] = []
    for i in range(info.ndim):
        size = info.dims[i]
        dims.append(size if size >= 0 else symbols[-1 - size])
    dtype = DType(info.dtype.code, info.dtype.bits, info.dtype.lanes)
    return TensorSpec(info.name.decode(), by_dlpack(dtype).name, tuple(dims))
