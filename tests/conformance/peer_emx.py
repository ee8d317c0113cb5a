"""emx-onnx-cgen, which turns ONNX into plain C, as the backend of a test.

    python -m venv VENV && VENV/bin/pip install emx-onnx-cgen ml_dtypes
    CC=clang VENV/bin/python tests/conformance/run.py --backend emx-onnx-cgen --results FILE

It needs a C compiler that knows `_BitInt` and `__bf16` (clang, gcc 14, zig). Its own adapter
compiles the C and runs it; values are compared here, as for abqc.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import onnx

from .agreement import disagreement
from .cases import DataSet


def run_model(
    model: onnx.ModelProto, sets: list[DataSet], tolerances: tuple[float, float], folder: Path
) -> dict[str, Any]:
    """As `backend.run_model`; whatever it raises counts as refused.

    A model whose inputs are sequences is compiled for the values it is given, as it asks for.
    """
    from emx_onnx_cgen.onnx_backend import run_model as compile_and_run

    try:
        for inputs, expected in sets:
            outputs = compile_and_run(model, inputs)
            wrong = disagreement(expected, list(outputs), *tolerances)
            if wrong is not None:
                return {"status": "wrong", "message": wrong}
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        message = " ".join(f"{type(error).__name__}: {error}".split())[:600]
        return {"status": "refused", "message": message, "traceback": text[-3000:]}
    return {"status": "passed"}
