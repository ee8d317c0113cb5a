"""What onnxruntime's own tools make of a model: fused, quantized, in half precision.

Needs onnxruntime; `optimized_*` also needs its `transformers` tools' requirements.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from zoo.entry import Entry, sizes_of
from zoo.feeds import make_feeds

Tool = Callable[[Entry, Path, Path], None]


class Feeds:
    """Inputs for calibration, as onnxruntime's quantizer wants them."""

    def __init__(self, entry: Entry, path: Path, count: int = 4) -> None:
        sizes = sizes_of(entry)[1]
        self._feeds: Iterator[Any] = iter(make_feeds(entry, path, sizes, s) for s in range(count))

    def get_next(self) -> Any:
        return next(self._feeds, None)


def prepared(path: Path, directory: Path) -> Path:
    """The model after onnxruntime's advice: shapes inferred, before quantizing."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    target = directory / "prepared.onnx"
    quant_pre_process(str(path), str(target), skip_symbolic_shape=True, skip_optimization=False)
    return target


def save(model: onnx.ModelProto, target: Path) -> None:
    """Write with the weights beside the file, in `weights.data`, if they are many."""
    large = model.ByteSize() > 200_000_000
    if large:
        onnx.save(
            model, target, save_as_external_data=True, location="weights.data", size_threshold=1024
        )
    else:
        onnx.save(model, target)


def fused(kind: str) -> Tool:
    """onnxruntime.transformers.optimizer's fusions for a model of that kind."""

    def run(entry: Entry, source: Path, target: Path) -> None:
        from onnxruntime.transformers.optimizer import optimize_model

        # 0: the number of heads and the hidden size are read off the graph
        result = optimize_model(str(source), kind, num_heads=0, hidden_size=0, opt_level=0)
        save(result.model, target)

    return run


def saved_by_session(level: str) -> Tool:
    """What a session of onnxruntime writes after its own optimizations."""

    def run(entry: Entry, source: Path, target: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.data"
        )
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return run


def dynamic(weight: str, per_channel: bool = False) -> Tool:
    def run(entry: Entry, source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        large = source.stat().st_size > 200_000_000 or any(source.parent.glob("*.data"))
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType[weight],
            per_channel=per_channel,
            use_external_data_format=large,
        )

    return run


def static(form: str, activation: str, weight: str, per_channel: bool = False) -> Tool:
    """Calibrated on random inputs; `form` is QDQ or QOperator."""

    def run(entry: Entry, source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            model = prepared(source, Path(scratch))
            quantize_static(
                str(model),
                str(target),
                Feeds(entry, source),
                quant_format=QuantFormat[form],
                activation_type=QuantType[activation],
                weight_type=QuantType[weight],
                per_channel=per_channel,
            )

    return run


def nbits(
    bits: int, symmetric: bool, form: str = "QOperator", operators: tuple[str, ...] = ("MatMul",)
) -> Tool:
    """MatMulNBits (GatherBlockQuantized) in blocks of 32, or the same codes as DequantizeLinear."""

    def run(entry: Entry, source: Path, target: Path) -> None:
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(
            block_size=32,
            is_symmetric=symmetric,
            bits=bits,
            quant_format=QuantFormat[form],
            op_types_to_quantize=operators,
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        )
        quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=bits, algo_config=config)
        quantizer.process()
        save(quantizer.model.model, target)

    return run


def half(keep_io: bool) -> Tool:
    def run(entry: Entry, source: Path, target: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(onnx.load(source), keep_io_types=keep_io)
        save(model, target)

    return run


TOOLS: dict[str, Tool] = {
    "fused-bart": fused("bart"),
    "fused-bert": fused("bert"),
    "fused-clip": fused("clip"),
    "fused-gpt2": fused("gpt2"),
    "fused-t5": fused("t5"),
    "fused-vit": fused("vit"),
    "basic": saved_by_session("ORT_ENABLE_BASIC"),
    "extended": saved_by_session("ORT_ENABLE_EXTENDED"),
    "dynamic-int8": dynamic("QInt8"),
    "dynamic-uint8": dynamic("QUInt8"),
    "dynamic-int8-channel": dynamic("QInt8", per_channel=True),
    "qdq-u8s8": static("QDQ", "QUInt8", "QInt8"),
    "qdq-s8s8-channel": static("QDQ", "QInt8", "QInt8", per_channel=True),
    "qdq-u16s8": static("QDQ", "QUInt16", "QInt8"),
    "qoperator": static("QOperator", "QUInt8", "QInt8"),
    "nbits2": nbits(2, symmetric=False),
    "nbits4": nbits(4, symmetric=True),
    "nbits4-asymmetric": nbits(4, symmetric=False),
    "nbits4-qdq": nbits(4, symmetric=False, form="QDQ"),
    "nbits4-gather": nbits(4, symmetric=False, operators=("MatMul", "Gather")),
    "nbits8": nbits(8, symmetric=False),
    "float16": half(keep_io=False),
    "float16-io": half(keep_io=True),
}


def make(tool: str, base: Entry, source: Path, target: Path) -> None:
    """Write what TOOLS[tool] makes of `base`, whose file is `source`, to `target`."""
    logging.disable(logging.WARNING)
    np.random.seed(0)
    TOOLS[tool](base, source, target)
