"""Products that read the same activations are launched as one.

    q = x Wq    k = x Wk    v = x Wv         one grid: theirs side by side
    up = silu(x Wg) * (x Wu)                 one kernel: an index of the grid computes its block of
                                             both, and the epilogue of the second reads the first

Nothing is concatenated: weights stay what they are (tied, imported, calibrated each for itself),
and results are buffers of their own. What merges are launches, each of which ends with waiting for
all threads, and grids, which then share these evenly. Products are merged where the rows that they
read are packed alike, after strategies have been chosen, and where ranges of rows are the same;
targets that cannot do so keep them apart (`Target.merges_products`).

Members of a group stand one behind the other and have the same number in the attribute `group`;
`lower-abq` comes next.
"""

from __future__ import annotations

from abqc.dialects.abq_conv import epilogue_inputs
from abqc.dialects.epilogue import Stage
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.epilogues import PRODUCTS

GROUP = "group"


def members(op: ir.Operation) -> list[ir.Operation]:
    """The products that are launched with `op`, itself included, in order."""
    if GROUP not in op.attributes:
        return [op]
    return [
        other.operation
        for other in op.block.operations
        if GROUP in other.operation.attributes
        and other.operation.attributes[GROUP] == op.attributes[GROUP]
    ]
