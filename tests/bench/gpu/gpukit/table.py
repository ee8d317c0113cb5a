"""Part `table`: seconds of the matmuls, weights cold, packing apart and together."""

from __future__ import annotations

from typing import Any

from .device import LAUNCHES, KitDevice, matmul_launches, pack_launch
from .kit import Kit, TableJob
from .rates import INSTRUCTION


def names(kit: Kit) -> list[str]:
    return [_name(job) for job in kit.table]


def _name(job: TableJob) -> str:
    f = job.features
    return f"{job.format} K={f['k']} N={f['n']} M={f['m']} {job.strategy} {f['schedule']}"


def measure(device: KitDevice, index: int) -> dict[str, Any]:
    """Seconds of packing, of the matmul with its reduction, and of both in turns (`total`)."""
    job = device.kit.table[index]
    f, launches = job.features, job.launches
    m, n, k = f["m"], f["n"], f["k"]
    x = device.buffer("x", 4 * m * k, "fill_floats")
    q = device.buffer("q", m * launches.row_bytes, "fill_bytes") if launches.pack else x
    bias, y = device.buffer("bias", 4 * n, "fill_floats"), device.buffer("y", 4 * m * n)
    packing = pack_launch(device, launches, m, x, q)
    device.run(*packing)

    def product(weight: int) -> list:
        return matmul_launches(device, launches, m, n, q, weight, bias, y)

    seconds, repetitions = device.cold_seconds(f["weight_bytes"], product)
    total, pack = seconds, 0.0
    if packing:
        pack = device.seconds(packing * LAUNCHES)[0] / LAUNCHES
        total, _ = device.cold_seconds(f["weight_bytes"], lambda w: [*packing, *product(w)])
    return {
        "format": job.format,
        "strategy": job.strategy,
        "schedule": f["schedule"],
        "rank": job.rank,
        "kernels": launches.kernels,
        "predicted": job.predicted,
        **{"m": m, "n": n, "k": k},
        "pack_seconds": pack,
        "matmul_seconds": seconds,
        "total_seconds": total,
        "clock": device.clock(),
        "repetitions": repetitions,
        "weight_bytes_per_second": f["weight_bytes"] / seconds,
        "operations_per_second": {
            unit: f[f"{unit}_ops"] / seconds for unit in INSTRUCTION if f[f"{unit}_ops"]
        },
        "features": f,
    }
