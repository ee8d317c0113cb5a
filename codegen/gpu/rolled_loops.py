"""Loops that stay as they are written. LLVM writes out those of few turns; but the bodies of loops
over K are what schedules say, and large: kernels would run out of registers, and their code would
depend on how many turns there are.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from ..builder import Loop, Value

ON_LOOP = "llvm.loop_annotation"  # lowering hands on what is named like this, to the last branch
ON_BRANCH = "loop_annotation"  # of `llvm.br`, which becomes LLVM's metadata
ROLLED = "#llvm.loop_annotation<unroll = <disable = true>>"
MANY = 4096  # turns


def keep_rolled(loop: Loop) -> None:
    """Tell LLVM to leave `loop` as it is."""
    loop.annotate(ON_LOOP, ir.Attribute.parse(ROLLED))


def annotate_branches(function: ir.Operation) -> None:
    """Give the branches of a lowered function what its loops were annotated with."""
    for block in function.regions[0]:
        branch = block.operations[len(block.operations) - 1]
        if ON_LOOP in branch.attributes:
            branch.attributes[ON_BRANCH] = branch.attributes[ON_LOOP]
            del branch.attributes[ON_LOOP]


def unknown(value: Value, size: Value) -> Value:
    """`value`, a number of turns of which compilers shall not know how few they are; a `size` is no
    negative number."""
    return value + (size >> 31) * MANY
