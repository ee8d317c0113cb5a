"""Weights in huge pages: the same results, from pages that are huge, or an error that says why."""

from __future__ import annotations

from pathlib import Path

import abqc
import fake_gpu
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.errors import AbqcError, InputError
from abqc.runtime.tensor_spec import TensorSpec

COUNT = 3 << 20  # of floats: 12 MB
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# The weight whose index is given.
HOST = f"""
#include "shim.h"
extern const float weights[{COUNT}];
int32_t abqc_host_main(abqc_ctx *ctx) {{
    const abqc_view *index = abqc_rt_input(ctx, 0);
    const float *found = weights + *(const int64_t *)index->data;
    abqc_rt_output(ctx, 0, found, 0, NULL, NULL);
    return 0;
}}
"""
META = ArtifactMeta(
    inputs=[TensorSpec("index", "int64", ())],
    outputs=[TensorSpec("weight", "float32", ())],
    isas=("plain",),
)
WEIGHTS = np.arange(COUNT, dtype=np.float32)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "model.so"
    weights = [("weights", WEIGHTS)]
    return handmade.build(path, HOST, META, weights=weights, manifest={"huge_pages": True})


def huge_kilobytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    kinds = ("AnonHugePages:", "FilePmdMapped:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds))


def check(model: abqc.Model) -> None:
    for index in (0, 1, 12345, COUNT // 2, COUNT - 1):
        assert model.run([np.array(index)])[0] == WEIGHTS[index]


def test_weights_lie_in_huge_pages(library) -> None:
    off = not SWITCH.exists() or "[never]" in SWITCH.read_text(encoding="ascii")
    if off:
        with pytest.raises(AbqcError, match="no huge pages"):
            abqc.load(library, huge_pages=True)
        return
    before = huge_kilobytes()
    with abqc.load(library) as usual, abqc.load(library, huge_pages=True) as model:
        check(usual)
        check(model)
        assert huge_kilobytes() - before >= 4 << 10
        with abqc.load(library, huge_pages=True) as again:
            check(again)
    with abqc.load(library) as model:
        check(model)


# No page of the file is huge, and mremap fails once its target is unmapped, as it may where memory
# is short.
FAILS_LATE = """
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
FILE *fopen(const char *path, const char *mode) {
    return fmemopen("nothing", 7, "r");
}
void *mremap(void *from, size_t size, size_t new_size, int flags, ...) {
    __builtin_va_list more;
    __builtin_va_start(more, flags);
    munmap(__builtin_va_arg(more, void *), new_size);
    __builtin_va_end(more);
    errno = ENOMEM;
    return MAP_FAILED;
}
"""


def test_weights_that_cannot_be_moved_are_read_still(tmp_path: Path) -> None:
    path = handmade.build(
        tmp_path / "model.so",
        FAILS_LATE + HOST,
        META,
        weights=[("weights", WEIGHTS)],
        manifest={"huge_pages": True},
    )
    with abqc.load(path) as model:
        with pytest.raises(AbqcError, match="cannot put weights into huge pages: Cannot allocate"):
            abqc.load(path, huge_pages=True)
        check(model)


def test_who_takes_none() -> None:
    for path in (handmade.layer(), fake_gpu.layer()):
        with pytest.raises(InputError, match="huge pages"):
            abqc.load(path, huge_pages=True)


def test_small_weights_stay_where_they_are(tmp_path) -> None:
    path = handmade.build(
        tmp_path / "small.so",
        HOST.replace(str(COUNT), "4"),
        META,
        weights=[("weights", WEIGHTS[:4])],
        manifest={"huge_pages": True},
    )
    with abqc.load(path, huge_pages=True) as model:
        assert model.run([np.array(3)])[0] == 3
