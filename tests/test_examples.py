"""The C programs under examples/: compiled, and run on a small model."""

from __future__ import annotations

from pathlib import Path

import handmade
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.shim import SHIM_DIRECTORY
from abqc.runtime.tensor_spec import TensorSpec
from handmade import run_program

EXAMPLES = Path(__file__).parent.parent / "examples"
STRICT = ("-Wall", "-Wextra", "-Werror", f"-I{SHIM_DIRECTORY}")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")

    def compiled(name: str, *flags: str) -> Path:
        find_compiler().run(
            [*STRICT, *flags, EXAMPLES / f"{name}.c", "-ldl", "-o", folder / name],
            directory=folder,
            purpose=f"compile {name}.c",
        )
        return folder / name

    return compiled


@pytest.mark.parametrize("standard", ["-std=c99", "-std=gnu17"])
def test_minimal(program, standard: str) -> None:
    result = run_program([program("minimal", standard), handmade.layer(), "3"])
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "input x: rows 16",
        "input index: rows",
        "input past: 1 2 past 4",
        "input step: 1 2 new 4",
        "output y: rows 16",
        "output next: rows",
        "output present: 1 2 ? 4",
        "output total:",
        "y [3, 16] 0 0.125 0.25 0.375",
        "next [3]",
        "present [1, 2, 6, 4] 0 0 0 0",
        "total [] 0",
    ]


def test_minimal_reports_errors(program) -> None:
    minimal = program("minimal")
    result = run_program([minimal, handmade.layer()], ABQC_ISA="sse9")
    assert result.returncode == 1 and "unknown instruction set 'sse9'" in result.stderr
    result = run_program([minimal, handmade.layer(), "0"])
    assert result.returncode == 1 and result.stderr == "error 7: there are no rows\n"
    result = run_program([minimal, minimal])
    assert result.returncode == 1
    assert run_program([minimal, "/no/such/model.so"]).returncode == 1
    assert run_program([minimal]).returncode == 2


# A decoder whose word after `token` is (token + the sum of the tokens in the cache) % 10.
DECODER_HOST = """
#include "shim.h"
int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *ids = abqc_rt_input(ctx, 0), *mask = abqc_rt_input(ctx, 1);
    int64_t token = *(const int64_t *)ids->data, sizes[] = {1, 2, 1, 3}, strides[] = {6, 3, 3, 1};
    float row[6], logits[10] = {0};
    for (int i = 0; i < 6; i++) row[i] = (float)token;
    abqc_view cache;
    abqc_rt_append(ctx, 2, 1, 2, 4, row, sizes, strides, &cache);
    abqc_rt_check(ctx, mask->sizes[1] == cache.sizes[2], "the mask is not as long as the cache");
    int64_t sum = 0;
    for (int64_t t = 0; t < cache.sizes[2]; t++) {
        int64_t at = cache.strides[1] + t * cache.strides[2] + 2 * cache.strides[3];
        sum += (int64_t)((const float *)cache.data)[at];
    }
    logits[(token + sum) % 10] = 1;
    int64_t logit_sizes[] = {1, 1, 10}, logit_strides[] = {10, 10, 1};
    abqc_rt_output(ctx, 0, logits, 3, logit_sizes, logit_strides);
    abqc_rt_output(ctx, 1, cache.data, 4, cache.sizes, cache.strides);
    return 0;
}
"""

DECODER = ArtifactMeta(
    inputs=[
        TensorSpec("input_ids", "int64", (None, None)),
        TensorSpec("attention_mask", "int64", (None, None)),
        TensorSpec("past_key_values.0.key", "float32", (None, 2, None, 3)),
    ],
    outputs=[
        TensorSpec("logits", "float32", (None, None, 10)),
        TensorSpec("present.0.key", "float32", (None, 2, None, 3)),
    ],
    isas=("plain",),
)


def test_inplace_cache(program, tmp_path: Path) -> None:
    model = handmade.build(tmp_path / "decoder.so", DECODER_HOST, DECODER)
    tokens = [3, 1, 4]
    while len(tokens) < 21:
        tokens.append((tokens[-1] + sum(tokens)) % 10)
    result = run_program([program("inplace_cache"), model, "20", "3", "1", "4"])
    assert (result.returncode, result.stderr) == (0, "")
    assert list(map(int, result.stdout.split())) == tokens


def test_inplace_cache_refuses_other_models(program) -> None:
    result = run_program([program("inplace_cache"), handmade.layer(), "20", "1"])
    assert result.returncode == 1
    assert "does not know what to feed to x" in result.stderr


def test_header_is_plain_cplusplus_too(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text('#include "abqc.h"\nint main() { return ABQC_OK; }\n')
    find_compiler().run(
        ["-x", "c++", *STRICT, "-pedantic", "-c", "main.cpp"],
        directory=tmp_path,
        purpose="compile the header",
    )
