"""What GPUs cannot compute: functions of f64, for which there is no code there.

On a CPU these are calls of the C library; the polynomials that stand for those of f32 would need
twice the digits.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir
from abqc.errors import ModelError

from ..infrastructure import node_name, walk

# Functions that are instructions, or few of them.
_NATIVE = frozenset(
    f"math.{name}"
    for name in (
        *(
            "absf",
            "ceil",
            "copysign",
            "floor",
            "fma",
            "round",
            "roundeven",
            "sqrt",
            "rsqrt",
            "trunc",
        ),
        *("isnan", "isinf", "isfinite", "isnormal"),
    )
)


def refuse_functions_of_f64(kernel: ir.Operation) -> None:
    """ModelError, with its node, for a function that no GPU kernel can compute."""
    for op in walk(kernel):
        if (
            op.name.startswith("math.")
            and op.name not in _NATIVE
            and any(isinstance(result.type, ir.F64Type) for result in op.results)
        ):
            raise ModelError(
                f"GPUs have no {op.name.removeprefix('math.')} of float64",
                node=node_name(op) or node_name(kernel),
                hint="compile for the CPU (--target cpu), or cast to float32",
            )
