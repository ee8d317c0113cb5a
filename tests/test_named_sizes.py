"""Named sizes of a signature: who must agree with whom, sums of names, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import abqc
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.codegen.size_expressions import Term, parse
from abqc.errors import InputError
from abqc.runtime.model import Model
from abqc.runtime.tensor_spec import TensorSpec

# The only output: the size of the mask's second axis.
HOST = """
#include "shim.h"
int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *mask = abqc_rt_input(ctx, 0);
    abqc_rt_output(ctx, 0, &mask->sizes[1], 0, NULL, NULL);
    return 0;
}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    meta = ArtifactMeta(
        inputs=[
            TensorSpec("mask", "int8", ("batch", "past + seq")),
            TensorSpec("ids", "int8", ("batch", "seq")),
            TensorSpec("cache", "int8", ("batch", "past", "2*past*seq - 1")),
            TensorSpec("other", "int8", ("past + seq", "seq + unknown", None)),
        ],
        outputs=[TensorSpec("size", "int64", ())],
        isas=("plain",),
    )
    path: Path = tmp_path_factory.mktemp("sizes") / "sizes.so"
    return abqc.load(handmade.build(path, HOST, meta))


def feeds(
    mask: tuple[int, ...] = (2, 7),
    ids: tuple[int, ...] = (2, 3),
    cache: tuple[int, ...] = (2, 4, 23),
    other: tuple[int, ...] = (7, 9, 1),
) -> list[np.ndarray]:
    return [np.zeros(shape, np.int8) for shape in (mask, ids, cache, other)]


def test_sizes_that_agree(model: Model) -> None:
    assert model.run(feeds())[0] == 7
    small = feeds(mask=(1, 2), ids=(1, 1), cache=(1, 1, 1), other=(2, 0, 0))
    assert model.run(small)[0] == 2
    assert model.inputs[0].shape == ("batch", "past + seq")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": (3, 3)}, "axis 0 of input 'ids' is 3, must be 'batch' = 2 as in 'mask'"),
        (
            {"mask": (2, 8), "other": (8, 9, 1)},
            "axis 1 of input 'mask' is 8, must be 'past + seq' (seq = 3, past = 4)",
        ),
        (
            {"other": (8, 9, 1)},
            "axis 0 of input 'other' is 8, must be 'past + seq' = 7 as in 'mask'",
        ),
        (
            {"cache": (2, 4, 24)},
            "axis 2 of input 'cache' is 24, must be '2*past*seq - 1' (seq = 3, past = 4)",
        ),
    ],
    ids=["name", "sum", "shared sum", "product"],
)
def test_sizes_that_do_not(model: Model, changed: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        model.run(feeds(**changed))
    assert str(caught.value) == message


def test_products_beyond_64_bits_are_no_size(model: Model) -> None:
    long = np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), (2, 2**40), (0, 0))
    cache = np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), (2, 2**40, 0), (0, 0, 0))
    with pytest.raises(InputError, match=r"axis 1 of input 'mask' is 7, must be 'past \+ seq'"):
        model.run([*feeds()[:1], long, cache, *feeds()[3:]])


def test_expressions() -> None:
    names = {"a", "b", "n m", "x-1"}
    assert parse("a + b", names) == (Term(1, ("a",)), Term(1, ("b",)))
    assert parse("2*a*b - 3", names) == (Term(2, ("a", "b")), Term(-3, ()))
    assert parse("-a + 5", names) == (Term(-1, ("a",)), Term(5, ()))
    assert parse("n m + a", names) == (Term(1, ("n m",)), Term(1, ("a",)))
    for text in ("a", "x-1", "a + c", "a // 2", "max(a, b)", "7", "a +", "a b", ""):
        assert parse(text, names) is None, text
