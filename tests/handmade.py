"""Artifacts with a host function and kernels written by hand in C: no compiler is needed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from abqc.codegen.elf import write_data_object
from abqc.codegen.link import ArtifactMeta, link
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.shim import SHIM_DIRECTORY
from abqc.runtime.tensor_spec import TensorSpec

COLUMNS = 16

# y = 2 x + w, a kernel row by row; next = index + 1; present = past with step appended; the total
# of present, read through the view that append returns.
LAYER_HOST = """
#include "shim.h"
extern const float layer_w[16];

static const int64_t one[1] = {1};

int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *x = abqc_rt_input(ctx, 0), *index = abqc_rt_input(ctx, 1);
    const abqc_view *step = abqc_rt_input(ctx, 3);
    int64_t rows = x->sizes[0], columns = x->sizes[1];
    abqc_rt_check(ctx, rows > 0, "there are no rows");
    float *y = abqc_rt_alloc(ctx, rows * columns * 4);
    const uint64_t args[] = {(uint64_t)x->data, (uint64_t)layer_w, (uint64_t)y, columns};
    abqc_rt_launch(ctx, 0, rows, args);

    int64_t *next = abqc_rt_alloc(ctx, rows * 8);
    for (int64_t i = 0; i < rows; i++) next[i] = ((const int64_t *)index->data)[i] + 1;

    abqc_view present;
    void *whole = abqc_rt_append(ctx, 2, 2, 2, 4, step->data, step->sizes, step->strides, &present);
    float total = 0;
    for (int64_t h = 0; h < present.sizes[1]; h++)
        for (int64_t t = 0; t < present.sizes[2]; t++)
            for (int64_t c = 0; c < present.sizes[3]; c++)
                total += ((const float *)present.data)[h * present.strides[1] +
                                                       t * present.strides[2] +
                                                       c * present.strides[3]];

    abqc_rt_output(ctx, 0, y, 2, x->sizes, x->strides);
    abqc_rt_free(ctx, y);
    abqc_rt_output(ctx, 1, next, 1, &rows, one);
    abqc_rt_output(ctx, 2, whole, 4, present.sizes, present.strides);
    abqc_rt_output(ctx, 3, &total, 0, NULL, NULL);
    return 0;
}
"""

LAYER_KERNELS = """
#include <stdint.h>
static void scale(int64_t begin, int64_t end, const uint64_t *args) {
    const float *x = (const float *)args[0], *w = (const float *)args[1];
    float *y = (float *)args[2];
    int64_t columns = (int64_t)args[3];
    for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < columns; c++) y[i * columns + c] = 2 * x[i * columns + c] + w[c];
}
void (*const abqc_kernels_ISA[])(int64_t, int64_t, const uint64_t *) = {scale};
"""

LAYER_WEIGHTS = np.arange(COLUMNS, dtype=np.float32) / 8

LAYER = ArtifactMeta(
    inputs=[
        TensorSpec("x", "float32", ("rows", COLUMNS)),
        TensorSpec("index", "int64", ("rows",)),
        TensorSpec("past", "float32", (1, 2, "past", 4)),
        TensorSpec("step", "float32", (1, 2, "new", 4)),
    ],
    outputs=[
        TensorSpec("y", "float32", ("rows", COLUMNS)),
        TensorSpec("next", "int64", ("rows",)),
        TensorSpec("present", "float32", (1, 2, None, 4)),
        TensorSpec("total", "float32", ()),
    ],
    isas=("avx2", "plain"),
)

# Does what its input says: each way in which a run can fail.
FAULTS_HOST = """
#include "shim.h"
int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *what = abqc_rt_input(ctx, 0);
    int64_t code = *(const int64_t *)what->data;
    void *data = abqc_rt_alloc(ctx, 1000);
    abqc_rt_check(ctx, code != 1, "sizes 3 and 4 do not go together");
    if (code == 2) abqc_rt_alloc(ctx, INT64_MAX);
    if (code == 3) abqc_rt_alloc(ctx, -1);
    if (code == 4) abqc_rt_alloc(ctx, (int64_t)1 << 45);
    if (code == 5) return 7;
    if (code == 6) abqc_rt_free(ctx, data), abqc_rt_free(ctx, data);
    if (code == 7) return 0;
    abqc_rt_output(ctx, 0, what->data, 0, NULL, NULL);
    if (code == 8) abqc_rt_output(ctx, 0, what->data, 0, NULL, NULL);
    if (code == 9) abqc_rt_check(ctx, 0, "after the output");
    return 0;
}
"""

NO_KERNELS = """
#include <stdint.h>
void (*const abqc_kernels_ISA[1])(int64_t, int64_t, const uint64_t *) = {0};
"""

FAULTS = ArtifactMeta(
    inputs=[TensorSpec("what", "int64", ())],
    outputs=[TensorSpec("what_too", "int64", ())],
    isas=("plain",),
)


def c_object(folder: Path, name: str, source: str, *flags: str) -> Path:
    """Compile C for an artifact: position-independent, the shim's headers at hand."""
    (folder / f"{name}.c").write_text(source)
    find_compiler().run(
        ["-std=gnu11", "-O2", "-fPIC", f"-I{SHIM_DIRECTORY}", *flags, "-c", f"{name}.c"],
        directory=folder,
        purpose=f"compile {name}.c",
    )
    return folder / f"{name}.o"


def build(
    output: Path,
    host: str,
    meta: ArtifactMeta,
    *,
    kernels: str = NO_KERNELS,
    weights: Sequence[tuple[str, np.ndarray]] = (),
    manifest: dict[str, object] | None = None,
) -> Path:
    """Link an artifact from C source; `ISA` in the kernels' source is each ISA's name."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        objects = [c_object(work, "model_host", host)]
        for isa in meta.isas:
            objects.append(c_object(work, f"kernels_{isa}", kernels.replace("ISA", isa)))
        if weights:
            write_data_object(work / "weights.o", weights)
            objects.append(work / "weights.o")
        link(objects, output, meta=meta, manifest=manifest or {"model": output.stem})
    return output


@cache
def folder() -> Path:
    """A directory of this process's artifacts."""
    keep = tempfile.TemporaryDirectory(prefix="abqc-handmade-")
    _kept.append(keep)
    return Path(keep.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def layer() -> Path:
    """The artifact of LAYER."""
    return build(
        folder() / "layer.so",
        LAYER_HOST,
        LAYER,
        kernels=LAYER_KERNELS,
        weights=[("layer_w", LAYER_WEIGHTS)],
    )


@cache
def faults() -> Path:
    """The artifact of FAULTS."""
    return build(folder() / "faults.so", FAULTS_HOST, FAULTS)


def layer_inputs(
    rows: int = 3, past: int = 5, new: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of LAYER."""
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((rows, COLUMNS), dtype=np.float32),
        "index": random.integers(0, 100, rows),
        "past": random.standard_normal((1, 2, past, 4), dtype=np.float32),
        "step": random.standard_normal((1, 2, new, 4), dtype=np.float32),
    }


def layer_reference(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of LAYER by numpy."""
    present = np.concatenate([inputs["past"], inputs["step"]], axis=2)
    total = present.sum(dtype=np.float32)
    return [2 * inputs["x"] + LAYER_WEIGHTS, inputs["index"] + 1, present, np.asarray(total)]


def run_program(
    command: Sequence[str | Path], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and hand back what it printed."""
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
