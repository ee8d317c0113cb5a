"""WordConvEmbedding: a vector for each word, of its characters."""

from __future__ import annotations

import math

from ..building.scalars import Scalar, const
from ..building.shaping import reshape
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import I64
from ..values.symbolic import ONE
from ..values.value import Value
from .convolution import conv_windows, convolve
from .indexing import gather_rows


@lowers("WordConvEmbedding", domain=MICROSOFT)
def word_conv_embedding(node: Node) -> Value:
    """Inputs: characters [words, length], 0 where a word has ended, weights [M, 1, window, E],
    bias [M], and the characters' vectors [characters, E]. Output: [words, M].

    The largest tanh of a convolution over the characters of the word, and at least one window. An
    empty word is zeros (onnxruntime leaves its memory as it is).
    """
    b, words, w, table = node.b, node.input(0), node.input(1), node.input(3)
    if words.rank != 2 or w.rank != 4 or table.rank != 2:
        raise node.error(f"its inputs are {words}, {w} and {table}")
    window, length = w.dims[2], words.dims[1]
    sizes = (
        ("embedding_size", w.dims[0]), ("conv_window_size", window),
        ("char_embedding_size", table.dims[1]),
    )  # fmt: skip
    for name, size in sizes:
        if node.int(name, -1) not in (-1, size.value):
            raise node.error(f"attribute '{name}' is {node.int(name)}, its weights have {size}")
    b.require_equal(w.dims[3], table.dims[1], f"{w} does not fit characters of {table}")
    vectors = gather_rows(node, table, words)
    image = reshape(b, vectors, [words.dims[0], ONE, length, table.dims[1]])
    y = convolve(node, image, w, node.input(2), conv_windows(node, image, w), 1)
    rows = reshape(b, y, [words.dims[0], w.dims[0], y.dims[2]])  # [words, M, windows]
    lengths = _lengths(node, words)
    reach = b.scalar(window).cast(I64)

    def counted(value: Scalar, place: Scalar, n: Scalar) -> Scalar:
        return (place <= n.maximum(reach) - reach).select(value.tanh(), -math.inf)

    places = b.tabulate([y.dims[2]], I64, lambda at: at[0].cast(I64))
    wide = reshape(b, lengths, [words.dims[0], ONE, ONE])
    seen = b.elementwise([rows, places, wide], rows.dtype, counted)
    (top,) = b.reduce([seen], [2], [(rows.dtype, -math.inf)], lambda v, m: [m.maximum(v)])
    by_word = reshape(b, lengths, [words.dims[0], ONE])
    return b.elementwise([top, by_word], top.dtype, lambda v, n: (n > 0).select(v, 0))


def _lengths(node: Node, words: Value) -> Value:
    """How many characters each word has: none if its first is 0."""
    b = node.b
    (counts,) = b.reduce(
        [words], [1], [(I64, 0)], lambda c, n: [n + (c > 0).select(const(1, I64), 0)]
    )
    source = Value(words.dtype, words.dims, ssa=b.tensor(words))
    made = Value(I64, counts.dims, ssa=b.tensor(counts))

    def body(at: list[Scalar]) -> Scalar:
        first = b.read(source, [at[0], const(0, at[0].dtype)])
        return (first > 0).select(b.read(made, at), 0)

    return b.tabulate(counts.dims, I64, body)
