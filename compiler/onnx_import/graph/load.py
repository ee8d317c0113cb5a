"""Reads an ONNX file without reading its weights: they are mapped, checked and left on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
from abqc.errors import ModelError
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..values.constants import Constant, from_array
from .model import SMALL, Model, default_opset, first_line, subgraphs
from .ordering import in_order

# Element types whose bytes in a file are those of a numpy array on a little-endian machine.
MAPPABLE = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16,
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip


def load_model(path: Path, work_dir: Path) -> tuple[Model, Initializers]:
    """The model at `path`. Embedded weights are spooled to `work_dir`, external ones are mapped."""
    proto = _parse(path)
    initializers = Initializers(path.resolve().parent, work_dir / "initializers.bin")
    constants: dict[str, Constant] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in constants:
            raise ModelError(f"initializer '{tensor.name}' is given twice")
        constants[tensor.name] = replace(initializers.constant(tensor), name=tensor.name)
    for sparse in proto.graph.sparse_initializer:
        raise ModelError(f"sparse initializer '{sparse.values.name}' is not supported")
    initializers.embed_nodes(proto.graph.node)
    for function in proto.functions:
        initializers.embed_nodes(function.node)
    nodes = named(in_order(proto.graph.node))
    model = Model(_shell(proto, constants), nodes, constants, default_opset(proto))
    return model, initializers


def _parse(path: Path) -> ModelProto:
    if not path.exists():
        raise ModelError(f"no such file: {path}")
    if not path.is_file():
        raise ModelError(f"{path} is not a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise ModelError(f"{path} is empty")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{path} is not an ONNX model, or it is truncated",
            hint="check the file with onnx.checker, or export it again",
        ) from None
    # Random bytes, and files cut between two fields, can parse: what a model must have decides.
    if not proto.opset_import or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(
            f"{path} is not an ONNX model, or it is truncated: it has no "
            + ("operator set" if not proto.opset_import else "graph with outputs"),
        )
    return proto


def _shell(proto: ModelProto, constants: dict[str, Constant]) -> ModelProto:
    """A copy without weights and nodes (clearing fields would not give their memory back)."""
    shell = ModelProto()
    shell.ir_version = proto.ir_version
    shell.producer_name, shell.producer_version = proto.producer_name, proto.producer_version
    shell.opset_import.extend(proto.opset_import)
    shell.functions.extend(proto.functions)
    graph = proto.graph
    shell.graph.name = graph.name or "main"
    # Until IR version 4 initializers had to be listed as inputs, too.
    shell.graph.input.extend(value for value in graph.input if value.name not in constants)
    shell.graph.output.extend(graph.output)
    outputs = {value.name for value in graph.output}
    shell.graph.value_info.extend(v for v in graph.value_info if v.name not in outputs)
    for value in (*shell.graph.input, *shell.graph.output, *shell.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # PaddlePaddle's way to say that a size is dynamic
                dim.ClearField("dim_value")
    return shell


def named(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Copies of the nodes, each with a name of its own: recipes and messages refer to it."""
    taken: set[str] = set()
    result = []
    for index, node in enumerate(nodes):
        copy = NodeProto()
        copy.CopyFrom(node)
        name = copy.name or f"{copy.op_type}_{index}"
        copy.name = name if name not in taken else f"{name}_{index}"
        taken.add(copy.name)
        result.append(copy)
    return result


class Initializers:
    """Makes constants of TensorProtos."""

    def __init__(self, model_dir: Path, spool: Path) -> None:
        self._model_dir = model_dir
        self._spool = spool
        self._spool_size = 0

    def constant(self, tensor: TensorProto) -> Constant:
        self._check(tensor)
        if tensor.data_location == TensorProto.EXTERNAL:
            file, offset = self._external(tensor)
            return _mapped(tensor, file, offset)
        if tensor.raw_data and tensor.data_type in MAPPABLE:
            self._check_length(tensor, len(tensor.raw_data))
        small = prod(tensor.dims) <= SMALL
        try:
            array = numpy_helper.to_array(tensor)
        except Exception as error:
            message = f"initializer '{tensor.name}' is damaged: {first_line(error)}"
            raise ModelError(message) from error
        if small or tensor.data_type not in MAPPABLE:
            return from_array(array.copy(), tensor.data_type)
        return self._spooled(tensor, array)

    def embed_nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Brings external tensors of attributes and subgraphs into them (small tables, mostly)."""
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    self._embed(attribute.t)
            for graph in subgraphs(node):
                for tensor in graph.initializer:
                    self._embed(tensor)
                self.embed_nodes(graph.node)

    def _embed(self, tensor: TensorProto) -> None:
        if tensor.data_location == TensorProto.EXTERNAL:
            array = self.constant(tensor).load()
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))

    def _check(self, tensor: TensorProto) -> None:
        if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == 0:
            raise ModelError(f"initializer '{tensor.name}' has unknown type {tensor.data_type}")
        if tensor.data_type in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            raise ModelError(f"initializer '{tensor.name}' is of type {kind}, which is unsupported")
        if any(size < 0 for size in tensor.dims):
            raise ModelError(f"initializer '{tensor.name}' has shape {list(tensor.dims)}")

    def _check_length(self, tensor: TensorProto, length: int) -> None:
        wanted = _byte_count(tensor)
        if length != wanted:
            raise ModelError(
                f"initializer '{tensor.name}' has {length} bytes of data, but its type and shape "
                f"{list(tensor.dims)} need {wanted}"
            )

    def _external(self, tensor: TensorProto) -> tuple[Path, int]:
        """The file and offset of external data, which must lie within the model's directory."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        known = bool(location) and "\0" not in location
        file = (self._model_dir / location).resolve() if known else self._model_dir
        if not known or not file.is_relative_to(self._model_dir):
            raise ModelError(
                f"initializer '{tensor.name}' names the external file '{location}', which is "
                "outside of the model's directory"
            )
        if not file.is_file():
            raise ModelError(
                f"external data file '{location}' of initializer '{tensor.name}' is missing",
                hint=f"put it beside the model, in {self._model_dir}",
            )
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or _byte_count(tensor))
        except ValueError:
            raise ModelError(
                f"initializer '{tensor.name}' has an external offset or length that is no number"
            ) from None
        if tensor.data_type not in MAPPABLE:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            raise ModelError(f"initializer '{tensor.name}': external {kind} data is unsupported")
        self._check_length(tensor, length)
        if offset < 0 or offset + length > file.stat().st_size:
            raise ModelError(
                f"initializer '{tensor.name}' lies at bytes {offset} to {offset + length} of "
                f"'{location}', which has {file.stat().st_size}: the file is truncated"
            )
        return file, offset

    def _spooled(self, tensor: TensorProto, array: np.ndarray) -> Constant:
        offset = -(-self._spool_size // 64) * 64
        with self._spool.open("r+b" if self._spool_size else "wb") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._spool_size = offset + array.nbytes
        return _mapped(tensor, self._spool, offset)


def _byte_count(tensor: TensorProto) -> int:
    return prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _mapped(tensor: TensorProto, file: Path, offset: int) -> Constant:
    shape = tuple(tensor.dims)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)

    def load() -> np.ndarray:
        if prod(shape) == 0:
            return np.empty(shape, dtype)
        flat = np.memmap(file, np.uint8, "r", offset, (prod(shape) * dtype.itemsize,))
        return flat.view(np.ndarray).view(dtype).reshape(shape)

    return Constant(shape, tensor.data_type, load)
