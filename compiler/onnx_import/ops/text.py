"""TfIdfVectorizer of integers: how often given sequences of tokens occur in a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from abqc.dialects.mlir import ir, linalg

from ..building.scalars import Scalar
from ..building.shaping import reshape, transpose
from ..registry import Node, lowers
from ..values.constants import from_array
from ..values.element_types import F32, I64, INDEX
from ..values.symbolic import ONE, Dim
from ..values.value import Value, constant_value
from .scatter import scattered

Gram = tuple[int, ...]


@lowers("TfIdfVectorizer")
def tf_idf_vectorizer(node: Node) -> Value:
    x, b = node.input(0), node.b
    if node.has("pool_strings"):
        raise node.error("its tokens are strings", hint="turn tokens into numbers before the model")
    if x.rank not in (1, 2):
        raise node.error(f"it needs a row of tokens or a batch of rows, not {x}")
    rows = x if x.rank == 2 else reshape(b, x, [ONE, *x.dims])
    columns = node.ints("ngram_indexes")
    width = max(columns) + 1
    grams = _grams(node, columns)
    counts = _counts(node, rows, list(grams))  # grams x rows
    dims = (Dim.of(width), rows.dims[0])
    empty = Value(F32, dims, ssa=b.full(F32, dims, 0.0))
    places = constant_value(from_array(np.array([[c] for c in grams.values()], np.int64)), I64)
    by_column = scattered(b, empty, places, counts, "addf")
    frequencies = transpose(b, by_column, [1, 0])
    result = _weighted(node, frequencies, width)
    return result if x.rank == 2 else reshape(b, result, [Dim.of(width)])


def _grams(node: Node, columns: Sequence[int]) -> dict[Gram, int]:
    """The sequences that count, each with its column."""
    pool, begins = node.ints("pool_int64s"), [*node.ints("ngram_counts")]
    shortest, longest = node.int("min_gram_length"), node.int("max_gram_length")
    found: dict[Gram, int] = {}
    number = 0
    for length, (begin, end) in enumerate(
        zip(begins, [*begins[1:], len(pool)], strict=True), start=1
    ):
        for at in range(begin, end - length + 1, length):
            if number >= len(columns):
                raise node.error("ngram_indexes has fewer entries than the pool has sequences")
            if shortest <= length <= longest:
                found[tuple(pool[at : at + length])] = columns[number]
            number += 1
    if not found:
        raise node.error("its pool has no sequence of the lengths that count")
    return found


def _counts(node: Node, rows: Value, grams: list[Gram]) -> Value:
    """How often each gram occurs in each row, its tokens next to each other or evenly spaced."""
    b = node.b
    longest = max(map(len, grams))
    table = np.zeros((len(grams), longest), np.int64)
    for i, gram in enumerate(grams):
        table[i, : len(gram)] = gram
    lengths = np.array([len(gram) for gram in grams], np.int64)
    tokens = _as_tensor(node, table)
    sizes = _as_tensor(node, lengths)
    batch, length = rows.dims
    distances = Dim.of(node.int("max_skip_count") + 1)
    dims = [Dim.of(len(grams)), batch, distances, length]
    d = [ir.AffineDimExpr.get(i) for i in range(4)]
    source = Value(rows.dtype, rows.dims, ssa=b.tensor(rows))
    end = b.scalar(length)

    def body(_: ir.Value, so_far: ir.Value) -> list[ir.Value]:
        gram, row, skipped, begin = (Scalar(linalg.IndexOp(i).result, INDEX) for i in range(4))
        distance = skipped + 1
        size = b.read(sizes, [gram]).cast(INDEX)
        last = begin + (size - 1) * distance
        # A single token has no distance: it counts once.
        matches = (last < end) & ((size > 1) | (skipped == 0))
        for i in range(longest):
            place = begin + distance * i
            read = (place < end).select(place, begin)
            token = b.read(source, [row, read]).cast(I64)
            matches = matches & ((size <= i) | (token == b.read(tokens, [gram, size.like(i)])))
        total = Scalar(so_far, F32)
        return [matches.select(total + 1.0, total).ssa]

    loops = b.empty(I64, dims[2:])
    (ssa,) = b.structured(
        [loops],
        [b.full(F32, dims[:2], 0.0)],
        [ir.AffineMap.get(4, 0, d[2:]), ir.AffineMap.get(4, 0, d[:2])],
        [True, True, False, False],
        body,
    )
    return Value(F32, tuple(dims[:2]), ssa=ssa)


def _as_tensor(node: Node, array: np.ndarray) -> Value:
    value = constant_value(from_array(array), I64)
    return Value(I64, value.dims, ssa=node.b.tensor(value))


def _weighted(node: Node, frequencies: Value, width: int) -> Value:
    mode = node.string("mode")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise node.error(f"mode is '{mode}', expected TF, IDF or TFIDF")
    weights = node.floats("weights", None)
    b = node.b
    if mode == "TF":
        return frequencies
    if mode == "IDF":
        frequencies = b.elementwise(
            [frequencies], F32, lambda f: (f > 0.0).select(f.like(1.0), f.like(0.0))
        )
    if not weights:
        return frequencies
    if len(weights) < width:
        raise node.error(f"it has {len(weights)} weights for {width} columns")
    row = constant_value(from_array(np.array(weights[:width], np.float32)), F32)
    return b.elementwise([frequencies, row], F32, lambda f, w: f * w)
