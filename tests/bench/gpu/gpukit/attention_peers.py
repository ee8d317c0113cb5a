"""Part `attention-peers`: PyTorch's scaled_dot_product_attention in f16 on the sizes of part
`attention`, measured in the same way."""

from __future__ import annotations

from typing import Any

from .baselines import graph_seconds
from .device import LAUNCHES, copies
from .kit import AttentionJob, Kit
from .pytorch import NoPyTorch, pytorch


def sizes(kit: Kit) -> list[AttentionJob]:
    """One job of each size."""
    every = {(job.rows, job.keys, job.head): job for job in reversed(kit.attention)}
    return list(reversed(every.values()))


def names(kit: Kit) -> list[str]:
    return [
        f"scaled_dot_product_attention f16 {job.rows}x{job.keys} of {job.head} columns"
        for job in sizes(kit)
    ]


def measure(kit: Kit, index: int) -> dict[str, Any]:
    """Seconds of one call with keys and values that are in no cache; or why there are none."""
    job = sizes(kit)[index]
    try:
        torch = pytorch()
    except NoPyTorch as error:
        return {"missing": str(error)}
    shared = job.heads // job.group

    def random(heads: int, rows: int) -> Any:
        return torch.randn(1, heads, rows, job.head, dtype=torch.float16, device="cuda")

    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    count = copies(4 * shared * job.keys * job.head, l2)
    caches = [(random(shared, job.keys), random(shared, job.keys)) for _ in range(count)]
    q, turns = random(job.heads, job.rows), max(count, LAUNCHES)
    attend = torch.nn.functional.scaled_dot_product_attention

    def every() -> None:
        for i in range(turns):
            attend(q, *caches[i % count], is_causal=job.causal, enable_gqa=True)

    seconds, runs = graph_seconds(torch, every)
    seconds /= turns
    return {
        "rows": job.rows,
        "keys": job.keys,
        "head": job.head,
        "seconds": seconds,
        "repetitions": runs * turns,
        "operations_per_second": job.operations / seconds,
        "torch": torch.__version__,
    }
