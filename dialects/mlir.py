"""The only file that imports the MLIR bindings, which today live in the torch-mlir wheel."""

from torch_mlir import ir
from torch_mlir.dialects import (
    affine,
    arith,
    bufferization,
    cf,
    ext,
    func,
    linalg,
    llvm,
    math,
    memref,
    nvvm,
    scf,
    tensor,
    vector,
)
from torch_mlir.dialects import torch as torch_dialect
from torch_mlir.extras import onnx_importer
from torch_mlir.passmanager import PassManager

__all__ = [
    "PassManager",
    "affine",
    "arith",
    "bufferization",
    "cf",
    "ext",
    "func",
    "ir",
    "linalg",
    "llvm",
    "math",
    "memref",
    "nvvm",
    "onnx_importer",
    "scf",
    "tensor",
    "torch_dialect",
    "vector",
]


def make_context() -> ir.Context:
    """A context that knows every dialect the compiler uses, `abq` and `torch_c` included.

    It starts no threads, so that the process can fork (codegen/kernel_job.py).
    """
    from .abq_order import Abq  # with its operations there and in abq.py

    context = ir.Context()
    context.enable_multithreading(False)
    torch_dialect.register_dialect(context)
    with context, ir.Location.unknown():
        Abq.load()
        # torch_c is loaded only by the first pipeline that uses it.
        PassManager.parse(
            "builtin.module(torch-backend-to-linalg-on-tensors-backend-pipeline)"
        ).run(ir.Module.create().operation)
    return context
