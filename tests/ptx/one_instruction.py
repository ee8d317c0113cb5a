"""Runs a few lines of PTX in every lane, on arrays: how single instructions are tested."""

from __future__ import annotations

import numpy as np
from abqc.runtime.ptx import run_kernel

THREADS = 128

# numpy type -> register's type, type of loads and stores.
_TYPES = {
    "uint8": ("b16", "u8"),
    "int8": ("b16", "s8"),
    "uint16": ("b16", "b16"),
    "int16": ("b16", "b16"),
    "float16": ("b16", "b16"),
    "uint32": ("b32", "b32"),
    "int32": ("b32", "b32"),
    "float32": ("f32", "b32"),
    "uint64": ("b64", "b64"),
    "int64": ("b64", "b64"),
    "float64": ("f64", "b64"),
}


def apply(lines: str, *sources: np.ndarray, to: type | str, results: int = 1) -> np.ndarray | tuple:
    """`lines` of PTX with {d}, {e}, {a}, {b}, {c}, {f} for registers; %p0.., %t0.. are free.

    All sources have one length; so has the result, of numpy type `to`.
    """
    count = len(sources[0])
    to = np.dtype(to)
    padded = -(-count // THREADS) * THREADS
    arrays = [np.resize(source, padded) for source in sources]
    outputs = [np.zeros(padded, to) for _ in range(results)]
    text = _kernel(lines, [array.dtype for array in arrays], to, results)
    done = run_kernel(text, "k", padded // THREADS, THREADS, [*arrays, *outputs])
    values = tuple(array[:count] for array in done[len(arrays) :])
    return values if results > 1 else values[0]


def _kernel(lines: str, dtypes: list[np.dtype], to: np.dtype, results: int) -> str:
    types = [*dtypes, *[to] * results]
    names = [*("abcf"[: len(dtypes)]), *("de"[:results])]
    parameters = ", ".join(f".param .u64 p_{name}" for name in names)
    registers = "\n".join(
        f".reg .{_TYPES[dtype.name][0]} %v_{name};"
        for name, dtype in zip(names, types, strict=True)
    )
    addresses = "\n".join(
        f"ld.param.u64 %a_{name}, [p_{name}]; mad.wide.u32 %a_{name}, %i, {dtype.itemsize}, "
        f"%a_{name};"
        for name, dtype in zip(names, types, strict=True)
    )
    loads = "\n".join(
        f"ld.global.{_TYPES[dtype.name][1]} %v_{name}, [%a_{name}];"
        for name, dtype in zip(names, dtypes, strict=False)
    )
    stores = "\n".join(
        f"st.global.{_TYPES[to.name][1]} [%a_{name}], %v_{name};" for name in names[len(dtypes) :]
    )
    body = lines.format(**{name: f"%v_{name}" for name in names})
    return f"""
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k({parameters})
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %i, %j, %t<16>;
    .reg .b64 {", ".join(f"%a_{name}" for name in names)}, %l<8>;
    {registers}
    mov.u32 %i, %ctaid.x;
    mov.u32 %j, %tid.x;
    mad.lo.u32 %i, %i, {THREADS}, %j;
    {addresses}
    {loads}
    {body}
    {stores}
    ret;
}}
"""


def bits(dtype: str, count: int = 4000, seed: int = 0) -> np.ndarray:
    """Random bits, and the values at which arithmetic breaks."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        edges = np.array(_FLOATS).astype(dtype)
        info = np.finfo(dtype)
        some = np.array([info.max, info.tiny, info.smallest_subnormal, -info.tiny], dtype)
        edges = np.concatenate([edges, some, -some])
    else:
        info = np.iinfo(dtype)
        edges = np.array([0, 1, 2, info.max, info.min, info.max - 1, info.max // 2], dtype)
    random = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
    random[: count // 2] = rng.choice(edges, count // 2)
    rng.shuffle(random)
    return random


_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 3.0, 255.5, 1e-3]


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit, except that any NaN equals any NaN."""
    assert actual.dtype == expected.dtype
    if actual.dtype.kind == "f":
        nan = np.isnan(expected)
        assert (np.isnan(actual) == nan).all()
        unsigned = f"u{actual.dtype.itemsize}"
        actual = np.where(nan, 0, actual.view(unsigned))
        expected = np.where(nan, 0, expected.view(unsigned))
    wrong = np.flatnonzero(actual != expected)
    assert not len(wrong), (wrong[:5], actual[wrong[:5]], expected[wrong[:5]])
