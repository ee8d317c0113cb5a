"""Arrays of types that numpy lacks, into onnxruntime and out of it again.

`InferenceSession.run` takes and gives numpy's own types only; the others go through OrtValues, as
codes with ONNX's number of the type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from abqc.runtime.element_types import NAMES, by_name, numpy_dtype
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]


def run_session(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """`session.run(None, feeds)` for tensors of all types; outputs may be arrays of ml_dtypes."""
    ends = [*session.get_inputs(), *session.get_outputs()]
    if all(_number(end) is None for end in ends):
        return session.run(None, dict(feeds))
    from onnxruntime import OrtValue

    def value_of(end: Any) -> Any:
        array, number = np.ascontiguousarray(feeds[end.name]), _number(end)
        if number is None:
            return OrtValue.ortvalue_from_numpy(array)
        codes = array.view(by_name(_name(number)).storage)
        return OrtValue.ortvalue_from_numpy_with_onnx_type(codes, number)

    given = {end.name: value_of(end) for end in session.get_inputs() if end.name in feeds}
    results = session.run_with_ort_values(None, given)
    outputs = zip(results, session.get_outputs(), strict=True)
    return [_array(value, _number(end)) for value, end in outputs]


def _name(number: int) -> str:
    return str(helper.tensor_dtype_to_np_dtype(number).name)


def _number(end: Any) -> int | None:
    """ONNX's number of an input's or output's type, `tensor(bfloat16)`; None where numpy has it."""
    text = end.type.removeprefix("tensor(").removesuffix(")").upper()
    if text not in dict(TensorProto.DataType.items()):
        return None
    number = TensorProto.DataType.Value(text)
    name = _name(number)
    return number if name in NAMES and by_name(name).codes else None


def _array(value: Any, number: int | None) -> Array:
    if number is None:
        return value.numpy()
    name, shape = _name(number), tuple(value.shape())
    dtype = by_name(name).storage
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data = ctypes.string_at(value.data_ptr(), size)
    return np.frombuffer(data, dtype).reshape(shape).view(numpy_dtype(name))
