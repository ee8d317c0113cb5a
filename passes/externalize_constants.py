"""Small constants become weights: a GPU cannot read those of the host's object."""

from __future__ import annotations

import numpy as np
from abqc.dialects.mlir import ir
from abqc.errors import CompileError

from .infrastructure import Unit, register, walk


@register
def externalize_constants(module: ir.Operation, unit: Unit) -> None:
    """Move constants that have values in the IR to the weight store."""
    block = module.regions[0].blocks[0]
    for op in [op.operation for op in block.operations if op.operation.name == "memref.global"]:
        value = op.attributes.get("initial_value")
        if value is None or isinstance(value, ir.UnitAttr):
            continue
        array = _array(value)
        symbol = f"abqc.constant.{ir.StringAttr(op.attributes['sym_name']).value}"
        unit.store.add(symbol, array)
        name = unit.weight_name(symbol)
        for use in walk(module, "memref.get_global"):
            if use.attributes["name"] == ir.FlatSymbolRefAttr.get(
                ir.StringAttr(op.attributes["sym_name"]).value
            ):
                use.attributes["name"] = ir.FlatSymbolRefAttr.get(name)
        del op.attributes["initial_value"]
        op.attributes["sym_name"] = ir.StringAttr.get(name)
        op.attributes["sym_visibility"] = ir.StringAttr.get("public")
        op.attributes["alignment"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 64)


def _array(value: ir.Attribute) -> np.ndarray:
    """The elements of a dense attribute, splats spread out, booleans as bytes."""
    type_ = ir.ShapedType(ir.DenseElementsAttr(value).type)
    element = type_.element_type
    shape = [type_.get_dim_size(i) for i in range(type_.rank)]
    if isinstance(element, ir.FloatType):
        values = [float(v) for v in ir.DenseFPElementsAttr(value)]
        if element.width not in (16, 32, 64) or isinstance(element, ir.BF16Type):
            raise CompileError(f"a constant has elements of type {element}")
        return np.array(values, f"f{element.width // 8}").reshape(shape)
    width = 64 if isinstance(element, ir.IndexType) else ir.IntegerType(element).width
    items = [int(v) for v in ir.DenseIntElementsAttr(value)]
    unsigned = np.array([item % (1 << width) for item in items], f"u{max(1, width // 8)}")
    return unsigned.reshape(shape)
