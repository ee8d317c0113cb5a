"""Every matmul gets a strategy; weights and activations get its layouts.

The strategy is the cheapest that can do the operation, by the target's cost model; matmuls that
read one activation are chosen for together, since each layout of it is a launch. Weights are
encoded and packed here, one at a time, and spooled to the store; activations become `abq.pack`, one
kernel that rotates, quantizes and lays out. Packs of one activation for several matmuls are equal
and `cse` merges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.element_types import is_integer
from abqc.dialects.formats import Float, Scheme, parse_scheme
from abqc.dialects.matmul_spec import MatmulSpec
from abqc.dialects.mlir import ir
from abqc.dialects.weight_noise import weight_noise
from abqc.errors import ModelError

from .decompose_conv import PATCHES
from .infrastructure import Unit, defining_op, register, walk
from .kernels.counters import COUNT
from .quantize import DEFAULT_HALF, HALF
from .rotate_stream import ROTATED


@dataclass(frozen=True)
class _Packed:
    """Where a stored weight went."""

    node: str
    strategy: str
    spec: Any
    symbol: str


@register
def pack_layouts(module: ir.Operation, unit: Unit) -> None:
    """Choose a strategy for every matmul and put its layouts into the types."""
    matmuls = [op for op in walk(module, "abq.matmul") if not abq.is_packed(op.opview.w)]
    packed: dict[str, _Packed] = {}
    choices = _choose(matmuls, unit)
    for done, (op, choice) in enumerate(zip(matmuls, choices, strict=True)):
        _pack_matmul(op, choice, packed, unit)
        if unit.progress is not None:
            unit.progress("pack weights", done + 1, len(matmuls))
    for op in walk(module, "abq.gather"):
        _pack_table(op, packed, unit)


def weight_symbol(value: ir.Value) -> str:
    owner = defining_op(value)
    assert owner is not None and owner.name == "abq.weight", "the importer makes weights constant"
    return ir.StringAttr(owner.attributes["sym"]).value


def _activation(x: ir.Value) -> tuple[ir.Value, Scheme | None, int, ir.Operation | None]:
    """The activation behind `x`, floats or stored codes, its scheme, its rotation, and the quantize
    operation."""
    text = abq.code_format(x)
    if text is None:
        return x, None, 0, None
    quantize = defining_op(x)
    assert quantize is not None and quantize.name == "abq.quantize"
    source = quantize.operands[0]
    rotation = defining_op(source)
    if rotation is not None and rotation.name == "abq.hadamard":
        block = ir.IntegerAttr(rotation.attributes["block"]).value
        return rotation.operands[0], parse_scheme(text), block, quantize
    return source, parse_scheme(text), 0, quantize


def _choose(matmuls: list[ir.Operation], unit: Unit) -> list[Any]:
    """The target's choice for each; those of one activation are asked for at once.

    In the order of `matmuls`: the hash of an operation changes with its operands, which packing
    replaces, so no dict may have one as its key.
    """
    readers: dict[ir.Value, list[int]] = {}
    for at, op in enumerate(matmuls):
        readers.setdefault(op.opview.x, []).append(at)
    working_set = sum(weight_bytes(spec_of(op)) for op in matmuls)
    choices: list[Any] = [None] * len(matmuls)
    for group in readers.values():
        nodes = [ir.StringAttr(matmuls[at].opview.node).value for at in group]
        chosen = unit.known_target.choose(
            [spec_of(matmuls[at]) for at in group], nodes=nodes, working_set=working_set
        )
        for at, choice in zip(group, chosen, strict=True):
            choices[at] = choice
    return choices


def weight_bytes(spec: MatmulSpec) -> int:
    """Of the codes alone."""
    return spec.n * spec.k * spec.weight_bits // 8


def spec_of(op: ir.Operation) -> MatmulSpec:
    """What an `abq.matmul` that is not packed yet is to strategies; of an `abq.conv` in one group,
    what the product of its patches is."""
    view = op.opview
    text = abq.code_format(view.w)
    source, activation, block, _ = _activation(view.x)
    n, *columns = abq.shape(view.w)
    k = prod(columns)
    half: Any = ir.StringAttr(op.attributes[HALF]).value if HALF in op.attributes else DEFAULT_HALF
    return MatmulSpec(
        n,
        k,
        parse_scheme(text) if text else None,
        activation,
        block,
        _scale_bits(view.w_scale),
        half,
        _float_type(view.w),
        stored_codes=activation is not None and abq.holds_codes(source),
        accumulators=is_integer(abq.element(view.result), 32),
    )


def _float_type(w: ir.Value) -> Float:
    """How a weight without codes is stored."""
    types: dict[str, Float] = {"f16": "f16", "bf16": "bf16"}
    return types.get(abq.element_text(w), "f32")


def _pack_matmul(op: ir.Operation, choice: Any, packed: dict[str, _Packed], unit: Unit) -> None:
    view = op.opview
    node = ir.StringAttr(view.node).value
    in_stream, patches = ROTATED in op.attributes, _reason_for_patches(op)
    x, _, _, quantize = _activation(view.x)
    strategy, spec = choice.strategy, choice.spec
    variants = choice.variants
    for variant in variants:
        for kernel in (variant.kernel, variant.reduce):
            if kernel is not None:
                unit.kernels[kernel.name] = kernel
    with ir.InsertionPoint(op), op.location:
        packed_x = _pack_activation(x, quantize, strategy, spec, unit)
        symbol = weight_symbol(view.w)
        blob, stats = pack_weight(symbol, strategy, spec, unit, node)
        new = abq.MatmulOp(
            packed_x,
            blob,
            op.attributes["node"],
            view.result.type,
            bias=view.bias,
        )
        encoding = unit.encodings.get(symbol)
        source = encoding.source if encoding else symbol
        if not (encoding and encoding.balance in unit.store):  # a table has no balanced columns
            packed[source] = _Packed(node, strategy.name, spec, stats["symbol"])
        names = [ir.StringAttr.get(v.kernel.name) for v in variants]
        limits = [v.max_rows if v.max_rows is not None else 0 for v in variants]
        new.operation.attributes["kernels"] = ir.ArrayAttr.get(names)
        new.operation.attributes["max_rows"] = ir.DenseI64ArrayAttr.get(limits)
        if any(v.reduce is not None for v in variants):
            reduces = [ir.StringAttr.get(v.reduce.name if v.reduce else "") for v in variants]
            new.operation.attributes["reduces"] = ir.ArrayAttr.get(reduces)
            splits = [v.split for v in variants]
            new.operation.attributes["splits"] = ir.DenseI64ArrayAttr.get(splits)
        _take_counters(new.operation, variants)
        new.operation.attributes["n"] = ir.IntegerAttr.get(ir.IndexType.get(), spec.n)
        new.operation.attributes["k"] = ir.IntegerAttr.get(ir.IndexType.get(), spec.k)
    op.results[0].replace_all_uses_with(new.result)
    op.erase()
    unit.operations.append(
        {
            "node": node,
            "kind": unit.node_kinds.get(node, "matmul"),
            "n": spec.n,
            "k": spec.k,
            "weight": spec.weight_text,
            "activation": spec.activation.text if spec.activation else choice.float_type,
            "rotated": spec.hadamard_block,
            "balanced": bool(encoding and encoding.balance in unit.store),
            "stream": in_stream,  # rotated in the weights around it
            "strategy": strategy.name,
            "why": choice.why,
            **patches,
            "predicted": [ranking.as_manifest() for ranking in choice.rankings],
            "shares_layout": choice.shares_layout,
            **stats,
        }
    )


def _take_counters(op: ir.Operation, variants: Sequence[Any]) -> None:
    """As many as the blocks of a kernel have that share tiles along K."""
    kernels = [variant.kernel for variant in variants]
    needed = max(k.most_blocks * k.stream.flags if k.stream else 0 for k in kernels)
    if needed:
        i64 = ir.IntegerType.get_signless(64)
        op.attributes[COUNT] = ir.IntegerAttr.get(i64, needed)


def _reason_for_patches(op: ir.Operation) -> dict[str, str]:
    """Of a convolution that the target has a way without patches for."""
    return (
        {PATCHES: ir.StringAttr(op.attributes[PATCHES]).value} if PATCHES in op.attributes else {}
    )


def _pack_activation(
    x: ir.Value, quantize: ir.Operation | None, strategy: Any, spec: Any, unit: Unit
) -> ir.Value:
    kernel = strategy.pack_kernel(spec)
    if kernel is None:
        return x
    scales: dict[str, ir.Value] = {}
    if quantize is not None and quantize.opview.x_scale is not None:
        kernel = strategy.scaled_pack_kernel(spec)
        scales = {"x_scale": quantize.opview.x_scale, "x_zero": quantize.opview.x_zero}
    unit.kernels[kernel.name] = kernel
    packed = abq.PackedType.get(ir.StringAttr.get(kernel.name))
    shape = [*abq.shape(x)[:-1], strategy.row_bytes(spec)]
    type_ = ir.RankedTensorType.get(shape, packed)
    return abq.PackOp(x, ir.StringAttr.get(kernel.name), type_, **scales).result


def _scale_bits(scale: ir.Value | None) -> int:
    """32 where imported scales need it, else 16: those of one byte are in the scheme."""
    return 32 if scale is not None and abq.element(scale) == ir.F32Type.get() else 16


def _encode(encoding: Any, unit: Unit, node: str, floats: np.ndarray | None = None) -> Any:
    try:
        return encoding.encode(unit.store, floats)
    except ValueError as error:  # NaN, infinities, scales beyond f16
        raise ModelError(f"the weight cannot be quantized: {error}", node=node) from error


def pack_weight(
    symbol: str, strategy: Any, spec: Any, unit: Unit, node: str
) -> tuple[ir.Value, dict[str, Any]]:
    packed_symbol = f"{symbol}.{strategy.name}"
    encoding = unit.encodings.get(symbol)
    if packed_symbol not in unit.store:
        if encoding:
            floats = None if encoding.imported else encoding.weight(unit.store)
            weight = _encode(encoding, unit, node, floats)
            if floats is not None:
                noise = weight_noise(floats, weight.dequantize())
                unit.noise[packed_symbol] = noise.as_manifest()
        else:
            weight = unit.store.get(symbol).reshape(spec.n, spec.k)
        unit.store.add(packed_symbol, strategy.pack_weight(spec, weight))
    size = unit.store.shape(packed_symbol)[0]
    layout = abq.PackedType.get(ir.StringAttr.get(strategy.name))
    value = abq.WeightOp(
        ir.StringAttr.get(packed_symbol), ir.RankedTensorType.get([size], layout)
    ).result
    return value, {
        "bytes": size,
        "bpw": round(size * 8 / (spec.n * spec.k), 4),
        "symbol": packed_symbol,
        **unit.noise.get(packed_symbol, {}),
    }


def _pack_table(op: ir.Operation, packed: dict[str, _Packed], unit: Unit) -> None:
    """Give a gather its kernel.

    1. A table that is a matmul's weight too (a head tied to the embedding) is read from the
       matmul's panels: it is stored once, in the format of the matmul.
    2. A quantized table is packed by rows.
    3. A float table stays for decompose-gather.
    """
    view = op.opview
    rows, columns = abq.shape(view.table)
    text = abq.code_format(view.table)
    symbol = weight_symbol(view.table)
    encoding = unit.encodings.get(symbol)
    node = ir.StringAttr(view.node).value
    index_bits = ir.IntegerType(abq.element(view.indices)).width
    tied = packed.get(encoding.source if encoding else symbol)
    kernel = None
    if tied is not None and index_bits == 64 and not tied.spec.hadamard_block:
        kernel = unit.known_target.panel_gather(tied.strategy, tied.spec)
    if tied is not None and kernel is not None:
        packed_symbol, scheme, why = tied.symbol, tied.spec.weight, f"tied to '{tied.node}'"
    elif text is not None:
        scheme, why = parse_scheme(text), "rows"
        table = unit.known_target.gather(columns, scheme, _scale_bits(view.scale), index_bits)
        kernel, packed_symbol = table.kernel, f"{symbol}.rows"
        if packed_symbol not in unit.store:
            unit.store.add(packed_symbol, table.pack(_encode(encoding, unit, node)))
    else:
        return
    unit.kernels[kernel.name] = kernel
    size = unit.store.shape(packed_symbol)[0]
    with ir.InsertionPoint(op), op.location:
        layout = abq.PackedType.get(ir.StringAttr.get(kernel.name))
        blob = abq.WeightOp(
            ir.StringAttr.get(packed_symbol), ir.RankedTensorType.get([size], layout)
        ).result
        new = abq.GatherOp(blob, view.indices, op.attributes["node"], view.result.type)
        new.operation.attributes["kernel"] = ir.StringAttr.get(kernel.name)
        new.operation.attributes["rows"] = ir.IntegerAttr.get(ir.IndexType.get(), rows)
    op.results[0].replace_all_uses_with(new.result)
    op.erase()
    unit.operations.append(
        {
            "node": node,
            "kind": "gather",
            "n": rows,
            "k": columns,
            "weight": scheme.text if scheme else tied.spec.weight_float if tied else "f32",
            "activation": "f32",
            "rotated": 0,
            "strategy": "gather",
            "why": why,
            "bytes": 0 if tied is not None and packed_symbol == tied.symbol else size,
            "bpw": round(size * 8 / (rows * columns), 4),
            "symbol": packed_symbol,
        }
    )
