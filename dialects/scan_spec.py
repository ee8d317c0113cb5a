"""What kernels of selective scans are made for; they do any sizes of batch, sequence and channels.

    kernel (x, delta, a, b, c, [initial], [scales and zero points], y, state; steps, channels)

x, delta, b and c are f32, or signed bytes where `codes`: then a scale (f32) and a zero point (i32)
follow for each of them, in this order, each a buffer of one element, and a value is
scale * (byte - zero). `abq.selective_scan` says what is computed and how tensors lie in memory. The
grid is samples * ceil(channels / block[0]).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScanSpec:
    """`states` is N; `softplus` whether steps are the softplus of delta, `initial` whether there
    is a state to begin with."""

    states: int
    softplus: bool
    initial: bool
    codes: bool

    @property
    def name(self) -> str:
        """What a kernel for it is called."""
        flags = ("softplus", "initial", "codes")
        return "_".join(
            ["selective_scan", f"n{self.states}", *(f for f in flags if getattr(self, f))]
        )
