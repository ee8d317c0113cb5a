"""What onnxruntime's own quantizers reach on the weights and windows of the accuracy table.

    python tests/accuracy/peer_onnxruntime.py              # every format that has no result yet
    python tests/accuracy/peer_onnxruntime.py nbits4-32 --again

`int8` is quantize_dynamic: int8 weights, one scale a tensor, activations uint8 at run time.
`nbits4-32` and `nbits4-128` are MatMulNBits in blocks of 32 and 128, symmetric, f32 scales,
computing in int8 (accuracy_level 4); `nbits4-32-zero` has zero points. The head stays float in all.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from abqc.compiler.onnxruntime_peer import Peer
from abqc.runtime.tensor_spec import TensorSpec
from accuracy import make_models, page, results
from accuracy.subjects import THREADS, measure_decoder
from accuracy.texts import folder
from models.fetch import Unavailable

HEAD = "lm_head"
TYPES = {1: "float32", 7: "int64"}


def dynamic_int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[HEAD],
        op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
    )


def matmul_nbits(block: int, *, symmetric: bool = True) -> Callable[[Path, Path], None]:
    def quantize(source: Path, target: Path) -> None:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(source),
            bits=4,
            block_size=block,
            is_symmetric=symmetric,
            accuracy_level=4,
            nodes_to_exclude=[HEAD],
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)

    return quantize


# Bits a weight: codes and f32 scales (a scale a tensor is nothing beside its weights).
FORMATS: dict[str, tuple[Callable[[Path, Path], None], str, float]] = {
    "int8": (dynamic_int8, "int8 a tensor", 8.0),
    "nbits4-128": (matmul_nbits(128), "int4, f32 scales, blocks of 128", 4 + 32 / 128),
    "nbits4-32-zero": (
        matmul_nbits(32, symmetric=False),
        "uint4, f32 scales and 4-bit zero points, blocks of 32",
        4 + 36 / 32,
    ),
    "nbits4-32": (matmul_nbits(32), "int4, f32 scales, blocks of 32", 4 + 32 / 32),
}


class OnnxModel:
    """A session with the interface of a compiled model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.peer = Peer(path, threads=THREADS)
        graph = onnx.load(path, load_external_data=False).graph
        self.inputs = tuple(_spec(value) for value in graph.input)
        self.outputs = tuple(_spec(value) for value in graph.output)
        self.run = self.peer.run


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    return TensorSpec(value.name, TYPES[kind.elem_type], shape)


def measure(name: str) -> dict[str, Any]:
    quantize, types, bits = FORMATS[name]
    onnx_file = make_models.offgrid()
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        path = Path(scratch) / "model.onnx"
        logging.disable(logging.WARNING)  # its advice to preprocess
        try:
            quantize(onnx_file, path)
        finally:
            logging.disable(logging.NOTSET)
        figures = measure_decoder(onnx_file, OnnxModel(path))
    about = {"engine": "onnxruntime", "format": name, "types": types, "bits": bits}
    return results.save(f"peer-onnxruntime-{name}", made_of(name), about | figures)


def made_of(name: str) -> dict[str, Any]:
    return {"engine": "onnxruntime", "format": name}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("formats", nargs="*", default=list(FORMATS), help=", ".join(FORMATS))
    parser.add_argument("--again", action="store_true", help="formats that have a result too")
    args = parser.parse_args()
    for name in args.formats:
        if name not in FORMATS:
            sys.exit(f"no format '{name}'; they are {', '.join(FORMATS)}")
        key = f"peer-onnxruntime-{name}"
        try:
            result = None if args.again else results.load(key, made_of(name))
            print(f"{name}: {page.summary(result or measure(name))}", flush=True)
        except (Unavailable, ImportError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
