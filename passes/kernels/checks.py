"""Checks inside of kernels: `cf.assert` in a loop body becomes an error of the run.

A kernel runs on many threads, none of which can leave it early. So it notes the number of the
failed check in the run's *error flag*, a 32-bit word that holds NO_ERROR before, and goes on with
values that stray nowhere (guard-indices). Of several failed checks the smallest number stays,
whatever the order of threads. A CPU's runtime looks at the flag after every launch, a GPU's at the
end of the run; `Unit.messages` has the text of each number.

A kernel that checks takes the flag, `memref<1xi32>`, and one index, the number, for each of its
messages: kernels that differ in nothing but their messages are one.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import arith, ir, memref, scf

from ..infrastructure import Unit, walk
from ..resolve_dims import index

NO_ERROR = -1  # 0xFFFFFFFF: larger than every number

# The flag's name in the host module; the runtime knows where it is (codegen/host/llvm.py).
FLAG = "abqc_error_flag"


def checks_of(op: ir.Operation) -> list[str]:
    """The messages of the checks below `op`, each once, in their order."""
    texts = [ir.StringAttr(check.attributes["msg"]).value for check in walk(op, "cf.assert")]
    return list(dict.fromkeys(texts))


def flag_type() -> ir.MemRefType:
    return ir.MemRefType.get([1], ir.IntegerType.get_signless(32))


def check_types(messages: Sequence[str]) -> list[ir.Type]:
    """The types of the arguments that a kernel with these checks takes; none without checks."""
    return [flag_type(), *[ir.IndexType.get()] * len(messages)] if messages else []


def check_arguments(module: ir.Operation, unit: Unit, messages: Sequence[str]) -> list[ir.Value]:
    """What the host passes for them."""
    if not messages:
        return []
    numbers = [index(unit.message_number(text)) for text in messages]
    return [error_flag(module), *numbers]


def error_flag(module: ir.Operation) -> ir.Value:
    """The run's error flag, on the host."""
    if FLAG not in ir.SymbolTable(module):
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), ir.Location.unknown():
            visibility = ir.StringAttr.get("public")
            memref.GlobalOp(
                ir.StringAttr.get(FLAG), ir.TypeAttr.get(flag_type()), sym_visibility=visibility
            )
    return memref.GetGlobalOp(flag_type(), FLAG).result


def raise_in_kernel(
    kernel: ir.Operation, messages: Sequence[str], arguments: Sequence[ir.Value]
) -> None:
    """Replace the checks of a kernel; `arguments` are those of `check_types`.

    The smallest number is gathered in a local variable, which LLVM turns into a register: a loop
    with a check is still vectorized.
    """
    if not messages:
        return
    flag, *numbers = arguments
    entry = kernel.regions[0].blocks[0]
    with ir.InsertionPoint.at_block_begin(entry):
        none = _i32(NO_ERROR)
        number_of = {
            text: arith.IndexCastOp(none.type, number).result
            for text, number in zip(messages, numbers, strict=True)
        }
        failed = memref.AllocaOp(flag_type(), [], []).result
        first = index(0)
        memref.StoreOp(none, failed, [first])
    for check in walk(kernel, "cf.assert"):
        number = number_of[ir.StringAttr(check.attributes["msg"]).value]
        with ir.InsertionPoint(check):
            noted = arith.SelectOp(check.operands[0], none, number).result
            least = arith.MinUIOp(memref.LoadOp(failed, [first]).result, noted).result
            memref.StoreOp(least, failed, [first])
        check.erase()
    with ir.InsertionPoint(entry.operations[len(entry.operations) - 1]):
        least = memref.LoadOp(failed, [first]).result
        any_failed = arith.CmpIOp(arith.CmpIPredicate.ne, least, none).result
        with ir.InsertionPoint(scf.IfOp(any_failed).then_block):
            memref.AtomicRMWOp(arith.AtomicRMWKind.minu, least, flag, [first])
            scf.YieldOp([])


def _i32(value: int) -> ir.Value:
    type_ = ir.IntegerType.get_signless(32)
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, value)).result
