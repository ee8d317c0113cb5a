"""Gates that onnxruntime fuses around LinearAttention and in decoders.

Products are f32, also where the documentation rounds them to a type of 16 bits on the way.
"""

from __future__ import annotations

from ..building.shaping import reshape, unsqueeze
from ..parts.activations import activation
from ..registry import MICROSOFT, Node, lowers
from ..values.symbolic import ONE
from ..values.value import Value
from .matmul import product_of
from .normalization import normalize


@lowers("GatedRMSNorm", domain=MICROSOFT)
def gated_rms_norm(node: Node) -> Value:
    """The RMS norm of x [..., H * C] over each C columns, times scale [C] and the gate's SiLU."""
    b, x, scale, gate = node.b, node.input(0), node.input(1), node.input(2)
    kind = node.choice("activation", "silu", "swish", "sigmoid")
    if scale.rank != 1 or x.rank < 1:
        raise node.error(f"its inputs are {x} and {scale}, expected rows and a vector")
    columns = scale.dims[0]
    heads = ONE if columns == x.dims[-1] else x.dims[-1] // columns
    b.require_equal(heads * columns, x.dims[-1], f"the rows of {x} are no multiples of {scale}")
    rows = reshape(b, x, [*x.dims[:-1], heads, columns])
    made = normalize(
        b, rows, x.rank, node.float("epsilon", 1e-5), kind="rms", weight=scale, bias=None
    )
    body = activation(node, "sigmoid" if kind == "sigmoid" else "silu")
    normed = reshape(b, made.y, x.dims)
    return b.elementwise([normed, gate], x.dtype, lambda v, g: v * body(g))


@lowers("LinearAttentionGate", domain=MICROSOFT)
def linear_attention_gate(node: Node) -> list[Value | None]:
    """Inputs: a [B, T, H], dt_bias [H], decay_scale [H], b [B, T, H].

    Outputs: decay_scale * softplus(a + dt_bias), and the sigmoid of b.
    """
    a, bias, scale, rate = node.input(0), node.input(1), node.input(2), node.optional(3)
    softplus = activation(node, "softplus")
    decay = node.b.elementwise([a, bias, scale], a.dtype, lambda x, c, s: softplus(x + c) * s)
    if rate is None:
        if node.wants(1):
            raise node.error("its second output needs b (input 3)")
        return [decay]
    return [decay, node.b.elementwise([rate], rate.dtype, lambda x: x.sigmoid())]


@lowers("GatedAdd", domain=MICROSOFT)
def gated_add(node: Node) -> Value:
    """x + y * gate, one gate a row: given [..., 1], or the sigmoid of gate [..., K] @ weight."""
    b, x, y, gate, weight = (node.b, *(node.input(i) for i in range(3)), node.optional(3))
    if weight is not None:
        scores = product_of(node, gate, weight)
        gate = b.elementwise([scores], scores.dtype, lambda v: v.sigmoid())
    return b.elementwise([x, y, gate], x.dtype, lambda v, w, g: v + w * g)


@lowers("ScaledSiLU", domain=MICROSOFT)
def scaled_silu(node: Node) -> Value:
    """SiLU of scale * x; the scale is input 1 or the attribute `alpha`."""
    x, scale = node.input(0), node.optional(1)
    silu = activation(node, "silu")
    if scale is None:
        alpha = node.float("alpha", 1.0)
        return node.b.elementwise([x], x.dtype, lambda v: silu(v * alpha))
    one = reshape(node.b, scale, [])
    return node.b.elementwise([x, one], x.dtype, lambda v, s: silu(v * s.cast(x.dtype)))


@lowers("GemmaRotaryEmbedding", domain=MICROSOFT)
def gemma_rotary_embedding(node: Node) -> list[Value]:
    """Angles [B, S, D]; q, q with its halves turned, k and k so, [B, H, S, D]: `q * cos + q' * sin`
    and the same of k."""
    b, angles = node.b, unsqueeze(node.b, node.input(0), [1])
    pairs = [(node.input(i), node.input(i + 1)) for i in (1, 3)]
    return [
        b.elementwise(
            [x, turned, angles], x.dtype,
            lambda v, w, a: v * a.cos().cast(v.dtype) + w * a.sin().cast(v.dtype),
        )
        for x, turned in pairs
    ]  # fmt: skip
