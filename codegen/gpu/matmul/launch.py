"""What spec and schedule say to the cost model of a product's launch, whatever multiplies."""

from __future__ import annotations

from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.interface import KernelFeatures

from .schedule import Schedule

FLOAT_BITS = 16  # of activations that no scheme quantizes: what tensor cores multiply


def launch_features(
    spec: MatmulSpec,
    schedule: Schedule,
    m: int,
    *,
    strategy: str,
    weight_bits: int,
    weight_bytes: int,
    row_bytes: int,
) -> KernelFeatures:
    """A weight of `weight_bytes` with scales and padding, `m` packed rows of `row_bytes`, blocks
    and reduction. Arithmetic, shared memory and what is in flight are the caller's to add."""
    tiles = -(-m // schedule.block_m) * -(-spec.n // schedule.block_n)
    splits = schedule.grid_split > 1
    return KernelFeatures(
        arch="",
        strategy=strategy,
        schedule=schedule.name,
        kind=schedule.kind,
        m=m,
        n=spec.n,
        k=spec.k,
        weight_bits=weight_bits,
        activation_bits=spec.activation.bits if spec.activation is not None else FLOAT_BITS,
        block_m=schedule.block_m,
        block_n=schedule.block_n,
        block_k=schedule.block_k,
        blocks=tiles * schedule.grid_split,
        threads=schedule.threads,
        weight_bytes=weight_bytes,
        activation_bytes=m * row_bytes,
        written_bytes=4 * m * spec.n,
        bytes_in_flight=0,
        workspace_bytes=schedule.grid_split * m * spec.n * 4 if splits else 0,
        warps_k=schedule.warps_k,
        stages=schedule.stages,
        split=schedule.grid_split,
        launches=2 if splits else 1,
        persistent=schedule.persistent > 0,
        shared_by=schedule.split if schedule.stream_k else 0,
    )
