"""The weight store: arrays by symbol, in files and never all in memory.

The IR refers to weights by symbol (`abq.weight`, and the operands the importer makes of it);
their bytes stay here until the artifact is written. Not safe for use by several threads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.errors import ModelError

ALIGNMENT = 64  # of each array in the spool file, bytes
SPOOL_NAME = "weights.bin"


@dataclass(frozen=True)
class _Mapped:
    """An array in a file, mapped when it is asked for."""

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def get(self) -> np.ndarray:
        if 0 in self.shape:
            return _read_only(np.empty(self.shape, self.dtype))
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return mapped.view(np.ndarray)


@dataclass(frozen=True)
class _Lazy:
    """An array that is computed each time it is asked for."""

    symbol: str
    shape: tuple[int, ...]
    dtype: np.dtype
    compute: Callable[[], np.ndarray]

    def get(self) -> np.ndarray:
        array = np.asarray(self.compute())
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"weight '{self.symbol}' was announced as {self.dtype} {self.shape}, "
                f"and came as {array.dtype} {array.shape}"
            )
        return _read_only(array)


@dataclass(frozen=True)
class _Quantized:
    """Codes with their scales; read as floats it is what they mean."""

    codes: _Mapped
    scale: _Mapped
    zero: _Mapped | None
    scheme: Scheme
    shape: tuple[int, ...]
    tensor_scale: float
    symbols: _Mapped | None
    from_floats: bool
    dtype = np.dtype(np.float32)

    def quantized(self) -> QuantizedTensor:
        zero = None if self.zero is None else self.zero.get()
        symbols = None if self.symbols is None else self.symbols.get()
        return QuantizedTensor(
            self.codes.get(), self.scale.get(), zero, self.scheme, self.tensor_scale, symbols
        )

    def get(self) -> np.ndarray:
        return _read_only(self.quantized().dequantize().reshape(self.shape))


class WeightStore:
    """Arrays by symbol, in the order in which they were added.

    Arrays are spooled to one file in `directory` (by default a new temporary one). `close()`, or
    leaving the `with` block, removes that file, and the directory if the store made it; arrays
    that are still referred to stay readable.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self._made_directory = directory is None or not Path(directory).exists()
        if directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="abqc-weights-"))
        else:
            self.directory = Path(directory)
            self.directory.mkdir(parents=True, exist_ok=True)
        self._spool_path = self._new_spool()
        self._entries: dict[str, _Mapped | _Lazy | _Quantized] = {}

    def _new_spool(self) -> Path:
        """An empty file of our own, so that stores can share a directory."""
        stem, suffix = SPOOL_NAME.split(".")
        with tempfile.NamedTemporaryFile(
            dir=self.directory, prefix=f"{stem}-", suffix=f".{suffix}", delete=False
        ) as file:
            return Path(file.name)

    def beside(self, directory: str | Path) -> WeightStore:
        """A store with the same arrays, which spools what it is given to a file in `directory`.

        What happens to one of the two does not show in the other, nor in another process: a fork
        would write where this process does.
        """
        store = WeightStore(directory)
        store._entries |= self._entries
        return store

    def add(self, symbol: str, array: np.ndarray) -> None:
        """Write `array` to the spool file; it is memory-mapped afterwards."""
        self._insert(symbol, self._spool(array))

    def add_mapped(
        self,
        symbol: str,
        path: str | Path,
        offset: int,
        dtype: np.dtype | type | str,
        shape: tuple[int, ...],
    ) -> None:
        """An array that lies in a file already (ONNX external data), at `offset` bytes.

        The file must stay as it is. Raises ModelError where it is missing or too short.
        """
        path, dtype, shape = Path(path), np.dtype(dtype), tuple(shape)
        needed = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if not path.is_file():
            raise ModelError(f"the data of weight '{symbol}' is missing: no file {path}")
        if offset < 0 or path.stat().st_size < needed:
            raise ModelError(
                f"the data of weight '{symbol}' is truncated: {path} has "
                f"{path.stat().st_size} bytes, {needed} are needed"
            )
        self._insert(symbol, _Mapped(path, offset, dtype, shape))

    def add_lazy(
        self,
        symbol: str,
        shape: tuple[int, ...],
        dtype: np.dtype | type | str,
        fn: Callable[[], np.ndarray],
    ) -> None:
        """An array that `fn` makes whenever it is asked for; nothing is cached."""
        self._insert(symbol, _Lazy(symbol, tuple(shape), np.dtype(dtype), fn))

    def add_quantized(
        self,
        symbol: str,
        codes: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None,
        scheme: Scheme,
        *,
        shape: tuple[int, ...] | None = None,
        tensor_scale: float = 1.0,
        from_floats: bool = False,
    ) -> None:
        """An imported quantized weight, kept exactly; codes, scales and zeros as `QuantizedTensor`.

        `get` gives its values in f32, in `shape` (by default that of the codes, N x K).
        `from_floats`: the model has them as floats, of which codes and scales were found.
        """
        tensor = QuantizedTensor(codes, scale, zero, scheme, tensor_scale)
        self.add_codes(symbol, tensor, shape=shape, from_floats=from_floats)

    def add_codes(
        self,
        symbol: str,
        tensor: QuantizedTensor,
        *,
        shape: tuple[int, ...] | None = None,
        from_floats: bool = False,
    ) -> None:
        """A weight of codes; `get` gives its values in f32, in `shape` (by default N x K)."""
        shape = tensor.codes.shape if shape is None else tuple(shape)
        if int(np.prod(shape, dtype=np.int64)) != tensor.codes.size:
            raise ValueError(f"{tensor.codes.size} codes do not fill a weight of shape {shape}")
        self._insert(
            symbol,
            _Quantized(
                self._spool(tensor.codes),
                self._spool(tensor.scale),
                None if tensor.zero is None else self._spool(tensor.zero),
                tensor.scheme,
                shape,
                tensor.tensor_scale,
                None if tensor.symbols is None else self._spool(tensor.symbols),
                from_floats,
            ),
        )

    def get(self, symbol: str) -> np.ndarray:
        """The array, read-only; a memory map unless it is computed."""
        return self._entry(symbol).get()

    def quantized(self, symbol: str) -> QuantizedTensor | None:
        """The imported codes, None for a float weight."""
        entry = self._entry(symbol)
        return entry.quantized() if isinstance(entry, _Quantized) else None

    def from_floats(self, symbol: str) -> bool:
        """Whether a weight of codes is one of floats in the model."""
        entry = self._entry(symbol)
        return isinstance(entry, _Quantized) and entry.from_floats

    def shape(self, symbol: str) -> tuple[int, ...]:
        return self._entry(symbol).shape

    def dtype(self, symbol: str) -> np.dtype:
        return self._entry(symbol).dtype

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Forget all arrays and remove what the store has written; may be called twice."""
        self._entries.clear()
        if self._made_directory:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self._spool_path.unlink(missing_ok=True)

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _insert(self, symbol: str, entry: _Mapped | _Lazy | _Quantized) -> None:
        if symbol in self._entries:
            raise ValueError(f"the weight store has a weight '{symbol}' already")
        self._entries[symbol] = entry

    def _entry(self, symbol: str) -> _Mapped | _Lazy | _Quantized:
        if symbol not in self._entries:
            raise KeyError(f"the weight store has no weight '{symbol}'")
        return self._entries[symbol]

    def _spool(self, array: np.ndarray) -> _Mapped:
        contiguous = np.ascontiguousarray(array)
        with open(self._spool_path, "r+b") as file:
            offset = _aligned(file.seek(0, 2))
            file.seek(offset)
            contiguous.tofile(file)
        return _Mapped(self._spool_path, offset, array.dtype, array.shape)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
