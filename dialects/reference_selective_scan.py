"""What `abq.selective_scan` computes, in numpy; tests compare kernels to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def selective_scan(
    x: F64,
    delta: F64,
    a: F64,
    b: F64,
    c: F64,
    *,
    softplus: bool = False,
    initial: F64 | None = None,
) -> tuple[F64, F64]:
    """y [B, T, D] and the last state [B, D, N].

    x and delta are [B, T, D], a [D, N], b and c [B, T, N], initial [B, D, N] (None: zeros).
    """
    batch, steps, channels = x.shape
    width = np.logaddexp(delta, 0.0) if softplus else delta
    h = np.zeros((batch, channels, a.shape[1])) if initial is None else initial.astype(np.float64)
    y = np.zeros(x.shape)
    for t in range(steps):
        d = width[:, t, :, None]
        h = np.exp(d * a) * h + d * x[:, t, :, None] * b[:, t, None, :]
        y[:, t] = (h * c[:, t, None, :]).sum(-1)
    return y, h
