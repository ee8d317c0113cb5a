"""Launches of grid functions from the host.

A launch is `func.call @kernel(%grid, arguments...)` on a private declaration that carries the unit
attribute `abq.kernel`. (An abq operation would be the natural form, but IRDL gives all operands of
a variadic group one type.)
"""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import func, ir, scf

KERNEL = "abq.kernel"

# Attribute of a launch that runs at the same time as the one behind it, and of a loop that is one
# kernel with it.
WITH_NEXT = "abq.with_next"

# Attributes of a GPU kernel: threads of a block, bytes of dynamic shared memory.
KERNEL_THREADS = "abq.threads"
KERNEL_SHARED = "abq.shared"

# Attribute of a CPU kernel with non-temporal stores: its entry waits for them.
STREAMS = "abq.streams"

# Prefix of the kernels made by outline-kernels. Their last argument, which they do not read, says
# how many elements one grid index touches.
LOOPS = "loops_"

# Kernels by hand of which a grid index does a row. Their last argument, its length, says the same.
ROW_KERNELS = ("softmax", "arg_max", "arg_min")

# Prefix of the kernels made by outline-sequences: loops over launches of other kernels. On a loop,
# the attribute says that it is to become one.
SEQUENCE_KERNEL = "sequence_"
SEQUENCE = "abq.sequence"

# On such a loop: its iterations are independent, and each gets an index of the grid.
PARTS = "abq.parts"

# Attribute of a launch whose kernel does rows one by one: of all its buffers but weights, which
# have as many rows as it is told.
BY_ROWS = "abq.by_rows"

# The function that says on how many threads a run launches kernels, an index.
THREADS = "abqc_rt_threads"

# Prefix of the kernels of convolutions over planes (dialects/conv_spec.py). Their last argument,
# which they do not read either, says how many outputs a channel has in all samples.
DIRECT_CONV = "direct_conv_"

# Prefix of the functions that append to a cache, one per element type and rank
# (codegen/host/entry.py); those that make room at its end.
APPEND = "abqc_append."
UPDATE = f"{APPEND}update."
GROW = f"{APPEND}grow."


def launch(
    module: ir.Operation,
    kernel: str,
    grid: ir.Value,
    arguments: list[ir.Value],
    *,
    with_next: bool = False,
    by_rows: bool = False,
) -> None:
    """Run `kernel` for 0 <= i < grid; declares it in `module` at its first launch.

    `with_next`: at the same time as the next launch of the block, on CPUs; neither reads what the
    other writes. `by_rows`: see BY_ROWS.
    """
    operands = [grid, *arguments]
    declare(module, kernel, [o.type for o in operands], [], kernel=True)
    call = func.CallOp([], ir.FlatSymbolRefAttr.get(kernel), operands)
    if with_next:
        call.operation.attributes[WITH_NEXT] = ir.UnitAttr.get()
    if by_rows:
        call.operation.attributes[BY_ROWS] = ir.UnitAttr.get()


def launch_one_of(
    condition: bool | ir.Value, first: Callable[[], None], second: Callable[[], None]
) -> None:
    """Launch the first one where the condition holds, which the host asks if it is a value."""
    if isinstance(condition, bool):
        (first if condition else second)()
        return
    branch = scf.IfOp(condition, has_else=True)
    for block, make in ((branch.then_block, first), (branch.else_block, second)):
        with ir.InsertionPoint(block):
            make()
            scf.YieldOp([])


def declare(
    module: ir.Operation,
    name: str,
    types: list[ir.Type],
    results: list[ir.Type],
    *,
    kernel: bool = False,
) -> None:
    """Declare a private function unless the module has it."""
    if name in ir.SymbolTable(module):
        return
    with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), ir.Location.unknown():
        declaration = func.FuncOp(name, ir.FunctionType.get(types, results), visibility="private")
        if kernel:
            declaration.operation.attributes[KERNEL] = ir.UnitAttr.get()


def threads(module: ir.Operation) -> ir.Value:
    """On how many threads a run launches kernels: a call at the insertion point (CPUs)."""
    declare(module, THREADS, [], [ir.IndexType.get()])
    return func.CallOp([ir.IndexType.get()], ir.FlatSymbolRefAttr.get(THREADS), []).results[0]


def launched_kernel(op: ir.Operation, kernels: frozenset[str]) -> str | None:
    """The kernel that a call launches, None for other operations."""
    if op.name != "func.call":
        return None
    callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
    return callee if callee in kernels else None


def kernel_names(module: ir.Operation) -> frozenset[str]:
    """All kernels that the module declares."""
    return frozenset(
        ir.StringAttr(op.attributes["sym_name"]).value
        for op in module.regions[0].blocks[0].operations
        if KERNEL in op.attributes
    )
