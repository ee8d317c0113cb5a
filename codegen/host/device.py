"""What differs in the host function where kernels run on a GPU.

Buffers are device memory: weights are asked for by `abqc_rt_weight`, and what the host itself needs
from a buffer is read by `abqc_rt_read`, which waits (docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...dialects.mlir import PointerType, arith, func, ir, linkage, memref
from ...errors import CompileError
from ...passes.infrastructure import defining_op, node_name, walk
from ...passes.resolve_dims import index
from .launches import Host, Slots, symbol
from .llvm import BODY, call_llvm, declare_llvm


class DeviceHost(Host):
    """The host of a GPU: buffers are pointers that it hands on and does not follow."""

    def rewrite(self) -> None:
        reads = [op for op in walk(self.main, "memref.load") if not _is_local(op.operands[0])]
        stores = [op for op in walk(self.main, "memref.store") if not _is_local(op.operands[1])]
        for op in stores:
            raise CompileError(
                "the host function writes to a tensor, which lies on the GPU"
                + (f" (node '{node_name(op)}')" if node_name(op) else ""),
                hint="compile for the CPU: --target cpu",
            )
        super().rewrite()
        if not reads:
            return
        with ir.InsertionPoint.at_block_begin(self.module.body):
            type_ = ir.FunctionType.get([self.i64, self.i64, self.i32], [self.i64])
            func.FuncOp("abqc_rt_read", type_, visibility="private")
        for op in reads:
            with ir.InsertionPoint(op), op.location:
                self._read(op)
            op.erase()

    def _read(self, op: ir.Operation) -> None:
        """A scalar that the host needs."""
        buffer, *position = op.operands
        element = ir.MemRefType(buffer.type).element_type
        width = element.width if not isinstance(element, ir.IndexType) else 64
        metadata = memref.ExtractStridedMetadataOp(buffer).operation.results
        strides = list(metadata)[2 + len(position) :]
        offset = metadata[1]
        for at, stride in zip(position, strides, strict=True):
            offset = arith.AddIOp(offset, arith.MulIOp(at, stride).result).result
        bytes_ = max(1, width // 8)
        offset = arith.MulIOp(offset, index(bytes_)).result
        base = memref.ExtractAlignedPointerAsIndexOp(buffer).result
        address = self.integer(arith.AddIOp(base, offset).result)
        call = func.CallOp(
            [self.i64],
            ir.FlatSymbolRefAttr.get("abqc_rt_read"),
            [self.context, address, self.constant(bytes_)],
        )
        op.results[0].replace_all_uses_with(_from_bits(call.results[0], element))

    def _site(self, op: ir.Operation, name: str, number: int) -> None:
        """Launches on a GPU are not timed here."""

    def _ahead(self, weights: Sequence[ir.Operation]) -> None:
        """A GPU has no threads that wait."""

    def _launch(self, op: ir.Operation, name: str, slots: Slots) -> None:
        self._call("abqc_rt_launch", self.launch_operands(op, name, slots))

    def _expand(self, value: ir.Value, pointer_only: bool) -> list[ir.Value | None]:
        """Kernels written by hand get the pointer of a buffer, as one slot."""
        slots = super()._expand(value, pointer_only)
        return [slots[1]] if pointer_only and isinstance(value.type, ir.MemRefType) else slots


def _is_local(buffer: ir.Value) -> bool:
    owner = defining_op(buffer)
    return owner is not None and owner.name == "memref.alloca"


def _from_bits(bits: ir.Value, element: ir.Type) -> ir.Value:
    """The low bits of an i64 as a value of a scalar type."""
    if isinstance(element, ir.IndexType):
        return arith.IndexCastOp(element, bits).result
    integer = ir.IntegerType.get_signless(element.width)
    low = bits if element.width == 64 else arith.TruncIOp(integer, bits).result
    return arith.BitcastOp(element, low).result if isinstance(element, ir.FloatType) else low


def ask_for_weights(module: ir.Module, context: ir.Value) -> None:
    """Addresses of weights become those of their copies on the device."""
    pointer = PointerType.get()
    declare_llvm(module, "abqc_rt_weight", "!llvm.func<ptr (ptr, ptr)>")
    weights = {
        symbol(op.operation)
        for op in module.body.operations
        if op.operation.name == "llvm.mlir.global"
        and op.operation.attributes["linkage"] == linkage("external")
    }
    body = next(op.operation for op in module.body.operations if _defines(op, BODY))
    for op in walk(body, "llvm.mlir.addressof"):
        if ir.FlatSymbolRefAttr(op.attributes["global_name"]).value not in weights:
            continue
        with ir.InsertionPoint.after(op), op.location:
            call = call_llvm("abqc_rt_weight", [pointer], [context, op.results[0]])
        op.results[0].replace_all_uses_except(call.results[0], [call])


def _defines(op: ir.OpView, name: str) -> bool:
    return op.operation.name == "llvm.func" and symbol(op.operation) == name
