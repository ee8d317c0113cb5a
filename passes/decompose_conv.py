"""Convolutions become matmuls of patches (im2col), which reuse every matmul kernel.

    x [B, C, S...] --patches--> [B * O..., C * W...] --abq.matmul--> [B * O..., N] --> [B, N, O...]

Cases:
1. one group: as above. Activations in codes have one scale per image: the model says it, or it is
   measured on the image. The patches are quantized with it, which is the same as taking patches of
   codes, since the zeros around the image are the zero point exactly. Where the codes are there
   already, as bytes, patches are taken of them.
2. several groups: a loop nest over channels, in float (listed as such by `inspect`), or over bytes
   of codes, to int32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import arith, cf, ir, linalg, tensor
from abqc.errors import RecipeError

from .infrastructure import Unit, blame, defining_op, register, walk
from .integers.loops import centred, integer, static_codes, stored_zero
from .loops.reshape import reshape
from .loops.row_loops import widened
from .quantize import HALF
from .resolve_dims import dimension_or_query, index

# The attribute of a convolution of codes, and of its product, that says why it takes patches where
# the target has a way without (`direct-code-conv`).
PATCHES = "patches"


@register
def decompose_conv(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.conv as patches and abq.matmul, or as loops where it has groups."""
    for op in walk(module, "abq.conv"):
        with ir.InsertionPoint(op), op.location:
            conv = Conv.of(op)
            result = conv.by_matmul() if conv.groups == 1 else conv.by_loops()
        if conv.groups > 1 and conv.quantize is None:
            unit.floats.append(conv.stays_float())
        op.results[0].replace_all_uses_with(result)
        op.erase()


def zero() -> ir.Value:
    f32 = ir.F32Type.get()
    return arith.ConstantOp(f32, ir.FloatAttr.get(f32, 0.0)).result


def pad(
    x: ir.Value,
    type_: ir.RankedTensorType,
    low: list[int],
    high: list[int],
    value: Callable[[], ir.Value],
) -> ir.Value:
    """`x` with what `value` emits around it."""
    padded = tensor.PadOp(type_, x, [], [], low, high).operation
    indices = [ir.IndexType.get()] * type_.rank
    block = padded.regions[0].blocks.append(*indices, arg_locs=[padded.location] * type_.rank)
    with ir.InsertionPoint(block):
        tensor.YieldOp(value())
    return padded.results[0]


def generic(
    type_: ir.Type, inputs: list[ir.Value], output: ir.Value, maps: list[ir.AffineMap], kinds: str
) -> linalg.GenericOp:
    names = {"p": "parallel", "r": "reduction"}
    return linalg.GenericOp(
        [type_],
        inputs,
        [output],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in maps]),
        linalg.iterator_types(names[k] for k in kinds),
    )


@dataclass
class Conv:
    """One convolution, its attributes as numbers and its sizes as values."""

    op: ir.Operation
    x: ir.Value
    w: ir.Value
    bias: ir.Value | None
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    groups: int
    quantize: ir.Operation | None = None  # what made the codes of x, if x has codes

    @staticmethod
    def of(op: ir.Operation) -> Conv:
        view = op.opview
        numbers = {
            name: list(ir.DenseI64ArrayAttr(op.attributes[name]))
            for name in ("strides", "dilations", "pads")
        }
        x, quantize = view.x, None
        if abq.code_format(x) is not None:
            quantize = defining_op(x)
            assert quantize is not None and quantize.name == "abq.quantize"
            x = quantize.operands[0]
        groups = ir.IntegerAttr(view.groups).value
        return Conv(op, x, view.w, view.bias, groups=groups, quantize=quantize, **numbers)

    @property
    def spatial(self) -> int:
        return len(self.strides)

    @property
    def result_type(self) -> ir.RankedTensorType:
        return ir.RankedTensorType(self.op.results[0].type)

    @property
    def window(self) -> list[int]:
        return abq.shape(self.w)[2:]

    def stays_float(self) -> dict[str, object]:
        n, c, *window = abq.shape(self.w)
        size = n * c
        for extent in window:
            size *= extent
        return {
            "node": ir.StringAttr(self.op.opview.node).value,
            "kind": "conv",
            "bytes": ir.FloatType(abq.element(self.w)).width // 8 * size,
            "why": f"a convolution in {self.groups} groups has no quantized kernel",
        }

    def output_sizes(self) -> list[ir.Value]:
        """The output's spatial sizes: (S + pads - dilation * (W - 1) - 1) / stride + 1."""
        sizes = []
        for i in range(self.spatial):
            static = self.result_type.shape[2 + i]
            if static != abq.DYNAMIC:
                sizes.append(index(static))
                continue
            size = dimension_or_query(self.x, 2 + i)
            extra = self.pads[i] + self.pads[self.spatial + i]
            reach = self.dilations[i] * (self.window[i] - 1) + 1
            span = arith.AddIOp(size, index(extra - reach)).result
            fits = arith.CmpIOp(arith.CmpIPredicate.sge, span, index(0)).result
            cf.AssertOp(fits, f"{blame(self.op)}: the input is smaller than the window")
            steps = arith.FloorDivSIOp(span, index(self.strides[i])).result
            sizes.append(arith.AddIOp(steps, index(1)).result)
        return sizes

    def padded(self) -> ir.Value:
        """`x` with zeros around it, or the zero point where it holds codes."""
        if not any(self.pads):
            return self.x
        type_ = ir.RankedTensorType(self.x.type)
        low = [0, 0, *self.pads[: self.spatial]]
        high = [0, 0, *self.pads[self.spatial :]]
        shape = [
            s if s == abq.DYNAMIC else s + before + after
            for s, before, after in zip(type_.shape, low, high, strict=True)
        ]
        padded = ir.RankedTensorType.get(shape, type_.element_type)
        return pad(self.x, padded, low, high, self._zero)

    def _zero(self) -> ir.Value:
        if self.quantize is not None and abq.holds_codes(self.x):
            return stored_zero(self.quantize)
        return zero()

    def by_matmul(self) -> ir.Value:
        """Case 1."""
        n, c, *window = abq.shape(self.w)
        k = c
        for extent in window:
            k *= extent
        batch = dimension_or_query(self.x, 0)
        sizes = self.output_sizes()
        patches = self._patches(batch, sizes, k)
        owner = defining_op(self.w)
        assert owner is not None, "the importer makes weights constant"
        flat = abq.WeightOp(
            owner.attributes["sym"], ir.RankedTensorType.get([n, k], abq.element(self.w))
        ).result
        static = [self.result_type.shape[0], *self.result_type.shape[2:]]
        product_type = ir.RankedTensorType.get([*static, n], self.result_type.element_type)
        view = self.op.opview
        scales = {"w_scale": view.w_scale, "w_zero": view.w_zero}
        if self.quantize is not None:
            patches, scale, zero = self._quantize_patches(patches)
            scales |= {"x_scale": scale, "x_zero": zero}
        product = abq.MatmulOp(
            patches, flat, self.op.attributes["node"], product_type, bias=self.bias, **scales
        )
        for name in (HALF, PATCHES):
            if name in self.op.attributes:
                product.operation.attributes[name] = self.op.attributes[name]
        return self._channels_first(product.result, batch, sizes)

    def _quantize_patches(self, patches: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        assert self.quantize is not None
        codes, scale, zero = self.quantize.results
        format = parse_scheme(abq.code_format(codes) or "").format
        if format.kind == "binary" and any(self.pads):
            raise RecipeError(
                "patches of symmetric codes of one bit have none for the zeros around an image",
                node=ir.StringAttr(self.op.attributes["node"]).value,
                hint="give the convolution a rule of its own, such as a1:asym or a2",
            )
        x_scale, x_zero = self.activation_scales()
        quantized = abq.QuantizeOp(
            patches,
            ir.RankedTensorType.get(abq.shape(patches), abq.element(codes)),
            scale.type,
            zero.type,
            x_scale=x_scale,
            x_zero=x_zero,
        )
        return quantized.codes, quantized.scale, quantized.zero

    def activation_scales(self) -> tuple[ir.Value, ir.Value]:
        """Scales and zero points of the codes: the model's, fixed ones, or those of images.

        RecipeError where blocks of activations have scales of their own.
        """
        assert self.quantize is not None
        codes, scale, zero = self.quantize.results
        if parse_scheme(abq.code_format(codes) or "").group_size is not None:
            raise RecipeError(
                "activations in blocks are for matmuls: a convolution's rows are windows",
                node=ir.StringAttr(self.op.attributes["node"]).value,
                hint="give convolutions a rule of their own, such as a8",
            )
        view = self.quantize.opview
        if view.x_scale is not None:
            return view.x_scale, view.x_zero
        measured = abq.MeasureOp(self.x, abq.element(codes).format, scale.type, zero.type)
        return measured.scale, measured.zero

    def _patches(self, batch: ir.Value, sizes: list[ir.Value], k: int) -> ir.Value:
        """[B, O..., C * W...]: what the window sees at every place."""
        d = self.spatial
        c = abq.shape(self.w)[1]
        source = self.padded()
        static = [self.result_type.shape[0], *self.result_type.shape[2:], c, *self.window]
        dynamic = [batch, *sizes]
        element = abq.element(self.x)
        empty = tensor.EmptyOp(
            [s if s != abq.DYNAMIC else dynamic[i] for i, s in enumerate(static)], element
        ).result
        dims = [ir.AffineDimExpr.get(i) for i in range(len(static))]
        places = [
            dims[1 + i] * self.strides[i] + dims[2 + d + i] * self.dilations[i] for i in range(d)
        ]
        maps = [
            ir.AffineMap.get(len(static), 0, [dims[0], dims[1 + d], *places]),
            ir.AffineMap.get_identity(len(static)),
        ]
        loop = generic(empty.type, [source], empty, maps, "p" * len(static))
        block = loop.operation.regions[0].blocks.append(
            *[element] * 2, arg_locs=[self.op.location] * 2
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
        groups = [*([i] for i in range(1 + d)), list(range(1 + d, len(static)))]
        flat = ir.RankedTensorType.get([*static[: 1 + d], k], element)
        return tensor.CollapseShapeOp(flat, loop.operation.results[0], groups).result

    def _channels_first(
        self, product: ir.Value, batch: ir.Value, sizes: list[ir.Value]
    ) -> ir.Value:
        """[B, O..., N] -> [B, N, O...]."""
        shape = list(self.result_type.shape)
        dynamic = {0: batch, **{2 + i: s for i, s in enumerate(sizes)}}
        element = self.result_type.element_type
        empty = tensor.EmptyOp(
            [s if s != abq.DYNAMIC else dynamic[i] for i, s in enumerate(shape)], element
        ).result
        rank = len(shape)
        dims = [ir.AffineDimExpr.get(i) for i in range(rank)]
        maps = [
            ir.AffineMap.get(rank, 0, [dims[0], *dims[2:], dims[1]]),
            ir.AffineMap.get_identity(rank),
        ]
        loop = generic(empty.type, [product], empty, maps, "p" * rank)
        block = loop.operation.regions[0].blocks.append(
            *[element] * 2, arg_locs=[self.op.location] * 2
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
        return loop.operation.results[0]

    def by_loops(self) -> ir.Value:
        """Case 2: y[b, g, n, o...] += x[b, g, c, o * stride + v * dilation...] w[g, n, c, v...]."""
        d, groups = self.spatial, self.groups
        n, c, *window = abq.shape(self.w)
        batch, sizes = dimension_or_query(self.x, 0), self.output_sizes()
        source = self._split_channels(self.padded(), groups, c)
        weights = self._split_weights(groups, n // groups, c, window)
        static = [self.result_type.shape[0], groups, n // groups, *self.result_type.shape[2:]]
        dynamic = {0: batch, **{3 + i: s for i, s in enumerate(sizes)}}
        start = tensor.EmptyOp(
            [s if s != abq.DYNAMIC else dynamic[i] for i, s in enumerate(static)],
            self.result_type.element_type,
        ).result
        start = self._start(start)
        # loops: b, g, n, o..., c, w...
        dims = [ir.AffineDimExpr.get(i) for i in range(4 + 2 * d)]
        b, g, o_n, outs, o_c, wins = (
            dims[0],
            dims[1],
            dims[2],
            dims[3 : 3 + d],
            dims[3 + d],
            dims[4 + d :],
        )
        places = [outs[i] * self.strides[i] + wins[i] * self.dilations[i] for i in range(d)]
        count = len(dims)
        maps = [
            ir.AffineMap.get(count, 0, [b, g, o_c, *places]),
            ir.AffineMap.get(count, 0, [g, o_n, o_c, *wins]),
            ir.AffineMap.get(count, 0, [b, g, o_n, *outs]),
        ]
        kinds = "p" * (3 + d) + "r" * (1 + d)
        loop = generic(start.type, [source, weights], start, maps, kinds)
        block = loop.operation.regions[0].blocks.append(
            *[abq.element(value) for value in (source, weights, start)],
            arg_locs=[self.op.location] * 3,
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([self._accumulated(*block.arguments)])
        flat_sizes = [batch, index(n), *sizes]
        return reshape(loop.operation.results[0], self.result_type, flat_sizes)

    def _accumulated(self, x: ir.Value, w: ir.Value, total: ir.Value) -> ir.Value:
        if self.quantize is None:
            return arith.AddFOp(total, arith.MulFOp(x, widened(w)).result).result
        codes = static_codes(self.quantize)
        assert codes is not None, "bytes have a constant scale"
        wide = arith.ExtSIOp(total.type, w).result
        return arith.AddIOp(total, arith.MulIOp(centred(x, codes), wide).result).result

    def _split_channels(self, x: ir.Value, groups: int, c: int) -> ir.Value:
        shape = abq.shape(x)
        split = [shape[0], groups, c, *shape[2:]]
        sizes = [dimension_or_query(x, i) for i, s in enumerate(shape) if s == abq.DYNAMIC]
        reassociation = [[0], [1, 2], *([3 + i] for i in range(self.spatial))]
        return tensor.ExpandShapeOp(
            ir.RankedTensorType.get(split, abq.element(x)), x, reassociation, sizes, split
        ).result

    def _split_weights(self, groups: int, n: int, c: int, window: list[int]) -> ir.Value:
        split = [groups, n, c, *window]
        reassociation = [[0, 1], *([2 + i] for i in range(1 + self.spatial))]
        return tensor.ExpandShapeOp(
            ir.RankedTensorType.get(split, abq.element(self.w)), self.w, reassociation, [], split
        ).result

    def _start(self, empty: ir.Value) -> ir.Value:
        """Zeros, or the bias of every channel."""
        if self.bias is None:
            zero = self._zero() if self.quantize is None else integer(0, abq.element(empty))
            fill = linalg.fill(zero, outs=[empty])
            return fill if isinstance(fill, ir.Value) else fill.results[0]
        type_ = ir.RankedTensorType(empty.type)
        rows = abq.shape(empty)[1:3]
        bias = tensor.ExpandShapeOp(
            ir.RankedTensorType.get(rows, ir.F32Type.get()), self.bias, [[0, 1]], [], rows
        ).result
        identity = ir.AffineMap.get_identity(type_.rank)
        channels = ir.AffineMap.get(type_.rank, 0, list(identity.results)[1:3])
        loop = generic(type_, [bias], empty, [channels, identity], "p" * type_.rank)
        block = loop.operation.regions[0].blocks.append(
            *[ir.F32Type.get()] * 2, arg_locs=[self.op.location] * 2
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
        return loop.operation.results[0]
