"""Bulk copies, mbarriers, wgmma and setmaxnreg together, and each of them done wrong."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault, PtxSyntaxError
from abqc.runtime.ptx.counters import Counters, TensorWork, Traffic
from pipeline_kernel import A_BYTES, B_BYTES, COLUMNS, FREE, SOURCE, WAIT_FOR_WGMMA, kernel_of, run
from test_mutants import instructions, mutant_of


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(-128, 128, (m, k), np.int8), rng.integers(-128, 128, (n, k), np.int8)


@pytest.mark.parametrize(("m", "n", "k"), [(128, 32, 128), (200, 29, 608), (1, 1, 384)])
def test_product(m: int, n: int, k: int) -> None:
    a, b = operands(m, n, k)
    assert (run(a, b) == a.astype(np.int32) @ b.T.astype(np.int32)).all()


def test_what_is_counted() -> None:
    counters = Counters()
    run(*operands(200, 29, 608), counters=counters)
    counts = counters.counts()
    tiles, steps = 2 * 5, 2 * 5 * 4  # blocks by tiles; instructions of a warpgroup, of which two
    work = TensorWork(2 * steps, 2 * steps * 2 * 64 * COLUMNS * 32)
    assert counts.tensor == {f"wgmma s8 x s8 m64n{COLUMNS}k32": work}
    assert counts.bulk == {"to shared": Traffic(2 * tiles, tiles * (A_BYTES + B_BYTES))}
    assert counts.loads["global"].bytes == 608 * (200 + 2 * 29)
    read = 2 * steps * (64 + COLUMNS) * 32
    assert counts.loads["shared::async"].bytes == read
    assert counts.warps["tensor"] == 4 * 2 * steps
    assert counts.warps["cp.async.bulk"] == 2 * tiles
    assert counts.threads["mbarrier"] > 0
    assert f"bulk copies to shared: {2 * tiles}, " in str(counts)


WRONG = {
    "no wait for wgmma": (WAIT_FOR_WGMMA, "", "wgmma reads it"),
    "a group stays pending": (
        "wait_group.sync.aligned 0",
        "wait_group.sync.aligned 1",
        "wgmma reads",
    ),
    "no look whether a tile is full": ("@!%done bra full;", "", "a bulk copy writes it"),
    "no look whether a stage is empty": ("@!%done bra empty;", "", "copies over"),
    "a stage is never freed": (FREE, "", "nothing can go on"),
    "too many bytes expected": (
        f"[%bar], {A_BYTES + B_BYTES}",
        f"[%bar], {A_BYTES + B_BYTES + 16}",
        "nothing can go on",
    ),
    "the wrong parity": ("[%bar], %phase", "[%bar], %x", "nothing can go on|a bulk copy|parity"),
    "more registers than there are": (
        "u32 232",
        "u32 240",
        "nothing can go on.*the block has no registers",
    ),
    "registers that nothing bounds": (".minnctapersm 1", "", "ptxas ignores it"),
    "an odd number of registers": ("u32 232", "u32 230", "a multiple of 8"),
    "no barrier after the initialization": ("    bar.sync 0;", "", "is not ordered before"),
    "no fence after the initialization": (
        "fence.mbarrier_init.release.cluster;",
        "",
        "not yet vis",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_planted_fault(name: str) -> None:
    old, new, match = WRONG[name]
    assert old in SOURCE
    with pytest.raises((PtxFault, PtxSyntaxError), match=match):
        run(*operands(130, 20, 640), kernel_of(SOURCE.replace(old, new)))


def test_a_stage_that_is_freed_before_wgmma_is_done() -> None:
    early = SOURCE.replace(WAIT_FOR_WGMMA, "").replace(FREE, f"{FREE}\n    {WAIT_FOR_WGMMA}")
    with pytest.raises(PtxFault, match="copies over shared memory while wgmma reads it"):
        run(*operands(130, 20, 640), kernel_of(early))


def test_every_instruction_that_orders_something_is_needed() -> None:
    """Each is left out in turn, and that is found. (Tests of mbarriers aside: their loops would not
    end.)"""
    kernel = kernel_of()
    steps = [
        step
        for step in instructions(kernel.function.body)
        if step.opcode in ("mbarrier", "fence", "bar", "wgmma", "cp")
        and not {"mma_async", "try_wait"} & {*step.modifiers}
    ]
    assert len(steps) == 13
    for step in steps:
        with pytest.raises(PtxFault):
            run(*operands(130, 20, 640), mutant_of(kernel, step, None))
            pytest.fail(f"{step.text} is not missed")
