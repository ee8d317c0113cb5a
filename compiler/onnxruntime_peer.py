"""onnxruntime as the other side of a comparison: the float model, or quantized by its own tools.

Quantized models are made once and kept in the cache folder, the newest KEPT of them.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.onnxruntime_values import run_session
from abqc.errors import AbqcError, InputError
from abqc.runtime.environment import cache_folder
from numpy.typing import NDArray

Array = NDArray[Any]

KEPT = 20

INSTALL = "install it with `pip install onnxruntime`"
INSTALL_QUANTIZER = "install what quantizing needs with `pip install 'abqc[compare]'`"


def import_onnxruntime() -> Any:
    """The module onnxruntime; an error with the line to type where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise AbqcError(
            "this comparison needs onnxruntime, which is missing", hint=INSTALL
        ) from error
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def quantize_int8(source: Path, target: Path) -> None:
    """Dynamic quantization: int8 weights, uint8 activations quantized at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8)


def quantize_nbits(bits: int) -> Callable[[Path, Path], None]:
    """MatMulNBits with blocks of 32, computing in int8 (accuracy_level 4)."""

    def quantize(source: Path, target: Path) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=bits, block_size=32, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)

    return quantize


QUANTIZERS: dict[str, Callable[[Path, Path], None] | None] = {
    "float": None,
    "int8": quantize_int8,
    "nbits4": quantize_nbits(4),
    "nbits2": quantize_nbits(2),
}


def quantized(model: Path, kind: str) -> Path:
    """The file of `model` in `kind` (a key of QUANTIZERS), made where it does not exist."""
    if kind not in QUANTIZERS:
        known = ", ".join(f"onnxruntime:{k}" for k in QUANTIZERS)
        raise AbqcError(f"unknown peer 'onnxruntime:{kind}'", hint=f"one of {known}")
    if not model.is_file():
        raise InputError(f"there is no file {model}")
    quantize = QUANTIZERS[kind]
    if quantize is None:
        return model
    target = _cache_directory(model, kind) / "model.onnx"
    if not target.exists():
        _make_room(target.parent.parent)
        with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
            logging.disable(logging.WARNING)  # its advice to preprocess
            try:
                quantize(model, Path(scratch) / "model.onnx")
            except ImportError as error:
                raise AbqcError(str(error), hint=INSTALL_QUANTIZER) from error
            finally:
                logging.disable(logging.NOTSET)
            target.parent.mkdir(exist_ok=True)
            for file in sorted(Path(scratch).iterdir(), reverse=True):
                file.replace(target.parent / file.name)
    return target


def _cache_directory(model: Path, kind: str) -> Path:
    status = model.stat()
    version = import_onnxruntime().__version__
    key = f"{model.resolve()}|{status.st_size}|{status.st_mtime_ns}|{kind}|{version}"
    return cache_folder() / "peers" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _make_room(root: Path) -> None:
    """Have the folder, and in it less than KEPT models. AbqcError where it cannot be made."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        old = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime)
    except OSError as error:
        raise AbqcError(
            f"cannot keep a quantized model in {root}: {error.strerror}",
            hint="ABQC_CACHE names another cache folder",
        ) from error
    for path in old[: max(0, len(old) - KEPT + 1)]:
        shutil.rmtree(path, ignore_errors=True)


class Peer:
    """An onnxruntime session on the CPU with `threads` threads."""

    def __init__(self, model: Path, kind: str = "float", threads: int = 0) -> None:
        onnxruntime = import_onnxruntime()
        path = quantized(model, kind)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes, all derived from Exception
            raise AbqcError(f"onnxruntime does not load {path}: {error}") from error
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order."""
        names = {i.name for i in self.session.get_inputs()}
        try:
            return run_session(
                self.session, {n: np.asarray(v) for n, v in feeds.items() if n in names}
            )
        except Exception as error:
            raise AbqcError(f"onnxruntime does not run the model: {error}") from error
