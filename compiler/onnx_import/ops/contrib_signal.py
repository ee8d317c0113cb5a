"""onnxruntime's Fourier transforms of real signals, and products of complex numbers."""

from __future__ import annotations

from ..building.scalars import Scalar
from ..building.shaping import concat, slice_axis, squeeze, unsqueeze
from ..registry import MICROSOFT, Node, lowers
from ..values.symbolic import Dim
from ..values.value import Value
from .signal import transform_along


@lowers("Rfft", domain=MICROSOFT)
def rfft(node: Node) -> Value:
    """Of the last `signal_ndim` axes: [..., n] to [..., n // 2 + 1, 2], real, imaginary."""
    x = node.input(0)
    axes = _axes(node, x.rank)
    y = unsqueeze(node.b, x, [x.rank])
    *others, last = axes
    y = transform_along(node, y, last, y.dims[last], inverse=False, one_sided=True)
    for axis in reversed(others):
        y = transform_along(node, y, axis, y.dims[axis], inverse=False, one_sided=False)
    return y


@lowers("Irfft", domain=MICROSOFT)
def irfft(node: Node) -> Value:
    """What `rfft` makes of a signal of even length, back: [..., m, 2] to [..., 2 * (m - 1)]."""
    x = node.input(0)
    *others, last = _axes(node, x.rank - 1)
    for axis in others:
        x = transform_along(node, x, axis, x.dims[axis], inverse=True, one_sided=False)
    length = (x.dims[last] - 1) * 2
    y = transform_along(node, x, last, length, inverse=True, one_sided=True)
    return squeeze(node.b, y, [y.rank - 1])


def _axes(node: Node, rank: int) -> list[int]:
    """The axes of the signal, the last of `rank`."""
    for name, only in (("onesided", 1), ("normalized", 0)):
        if node.int(name, only) != only:
            raise node.error(f"attribute '{name}' must be {only}")
    count = node.int("signal_ndim", 1)
    if not 1 <= count <= rank:
        raise node.error(f"signals of {count} axes do not fit {node.input(0)}")
    return list(range(rank - count, rank))


@lowers("ComplexMul", domain=MICROSOFT)
def complex_mul(node: Node) -> Value:
    """Of [..., 2], real and imaginary parts, broadcast together."""
    return _product(node, 1.0)


@lowers("ComplexMulConj", domain=MICROSOFT)
def complex_mul_conj(node: Node) -> Value:
    """A times the conjugate of B."""
    return _product(node, -1.0)


def _product(node: Node, sign: float) -> Value:
    """a * (re + sign * i * im) for b = re + i * im."""
    b, parts = node.b, []
    for x in (node.input(0), node.input(1)):
        if not x.rank:
            raise node.error(f"its inputs need a last axis of real and imaginary parts, not {x}")
        b.require_equal(x.dims[-1], Dim.of(2), f"the last axis of {x} must be 2")
        parts += [slice_axis(b, x, x.rank - 1, part, 1) for part in range(2)]

    def real(a: Scalar, a_i: Scalar, c: Scalar, c_i: Scalar) -> Scalar:
        return a * c - a_i * c_i * sign

    def imaginary(a: Scalar, a_i: Scalar, c: Scalar, c_i: Scalar) -> Scalar:
        return a_i * c + a * c_i * sign

    dtype = parts[0].dtype
    made = [b.elementwise(parts, dtype, body) for body in (real, imaginary)]
    return concat(b, made, made[0].rank - 1)
