"""Branches, barriers and the end of threads (PTX ISA, "Control Flow Instructions")."""

from __future__ import annotations

from ..batch import Batch
from ..control import Barrier, Branch, Exit, SetRegisters, Switch, Trap
from ..decode import Decoder, Effect, Operation, Run, instruction
from ..lanes import Lanes
from ..syntax import Integer, Symbol
from ..types import TYPES
from .clusters import cluster_barrier

_U32 = TYPES["u32"]


@instruction("bra")
def branch(i: Decoder) -> Operation:
    i.flag("uni")
    i.arity(1)
    return Branch(i.names.label(_symbol(i, 0)))


@instruction("brx")
def indexed_branch(i: Decoder) -> Operation:
    i.need("idx")
    i.flag("uni")
    i.arity(2)
    labels = i.names.targets(_symbol(i, 1))
    if not labels:
        raise i.error(f"{_symbol(i, 1)} is no list of targets")
    return Switch(i.source(0, _U32), labels)


def _symbol(i: Decoder, index: int) -> str:
    operand = i.operands[index]
    if not isinstance(operand, Symbol):
        raise i.error("a name is expected")
    return operand.name


@instruction("exit")
def exit_thread(i: Decoder) -> Operation:
    i.arity(0)
    return Exit()


@instruction("trap")
def trap(i: Decoder) -> Operation:
    i.arity(0)
    return Trap()


@instruction("brkpt", "nanosleep", "pmevent", "membar")
def nothing(i: Decoder) -> Operation:
    """What changes no value here: memory is sequentially consistent, whatever the scope."""
    operation = Effect(lambda batch: lambda lanes: None)
    operation.fences_blocks = bool({"gl", "gpu", "sys"} & {*i.rest()})
    i.rest().clear()
    return operation


@instruction("fence")
def fence(i: Decoder) -> Operation:
    """Of the asynchronous proxy: what this thread wrote, bulk copies and wgmma may now read."""
    if i.flag("mbarrier_init"):
        i.need("release")
        i.need("cluster")
        return _proxy_fence(only_inits=True)
    if not i.flag("proxy"):
        return nothing(i)
    is_async = {"async", "async::generic"} & {*i.rest()}
    if not is_async or "global" in i.rest():
        return nothing(i)
    i.rest().clear()
    return _proxy_fence(only_inits=False)


def _proxy_fence(only_inits: bool) -> Operation:
    def bind(batch: Batch) -> Run:
        return lambda lanes: batch.shared.proxy_fence(lanes, only_inits)

    operation = Effect(bind)
    operation.asynchronous = True
    return operation


@instruction("griddepcontrol")
def dependent_launches(i: Decoder) -> Operation:
    kind = i.need("wait", "launch_dependents")
    i.arity(0)

    def bind(batch: Batch) -> Run:
        def run(lanes: Lanes | None) -> None:
            dependence = batch.global_memory.dependence
            if dependence is not None:
                (dependence.wait if kind == "wait" else dependence.trigger)(lanes)

        return run

    return Effect(bind)


@instruction("setmaxnreg")
def set_registers(i: Decoder) -> Operation:
    more = i.need("inc", "dec") == "inc"
    for word in ("sync", "aligned", "u32"):
        i.need(word)
    i.arity(1)
    operand = i.operands[0]
    count = operand.value if isinstance(operand, Integer) else 0
    if count % 8 or not 24 <= count <= 256:
        raise i.error("a multiple of 8 from 24 to 256 is expected")
    return SetRegisters(count, more)


@instruction("bar", "barrier")
def barrier(i: Decoder) -> Operation:
    """Of blocks: `bar.sync a[, b]`, `.arrive`, `.red`; and `bar.warp.sync`, of warps."""
    if i.flag("warp"):
        from .warps import synchronize_warp

        return synchronize_warp(i)
    if i.flag("cluster"):
        return cluster_barrier(i)
    i.flag("cta")
    aligned = i.flag("aligned") or i.opcode == "bar"
    kind = i.choose("sync", "arrive", "red")
    if kind is None:
        raise i.error(".sync, .arrive or .red is missing")
    if kind == "red":
        return _reduction(i, aligned)
    count = i.arity(1, 2)
    threads = i.source(1, _U32) if count == 2 else None
    if kind == "arrive" and threads is None:
        raise i.error("barrier.arrive needs a number of threads")
    return Barrier(i.source(0, _U32), threads, waits=kind == "sync", aligned=aligned)


def _reduction(i: Decoder, aligned: bool) -> Operation:
    function = i.need("popc", "and", "or")
    type = i.type()
    count = i.arity(3, 4)
    return Barrier(
        i.source(1, _U32),
        i.source(2, _U32) if count == 4 else None,
        aligned=aligned,
        reduction=function,
        predicate=i.predicate_source(i.operands[-1]),
        result=i.result(0, type),
    )
