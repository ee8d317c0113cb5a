"""A model cut into segments that run one after the other, each with few products.

The cuts are where few numbers cross: in a decoder, the residual stream between two blocks. A
segment is a module of its own, made from the model's by naming what comes in and what goes out;
`canonicalize` drops the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import func, ir, run_upstream
from abqc.passes.infrastructure import main_function
from abqc.runtime.tensor_spec import TensorSpec

from .dataflow import DataFlow, ValueId, block_operations

# A place between two products that read different values is a cut where no place near it has much
# less to keep.
NEAR = 8
MUCH = 4


@dataclass(frozen=True)
class Segment:
    """Operations `begin` to `end` - 1 of the model.

    `inputs` are dear tensors of earlier segments that they read; `outputs` those of this segment
    that later ones read; `products` the positions of the products with constant weights.
    """

    begin: int
    end: int
    products: tuple[int, ...]
    inputs: tuple[ValueId, ...]
    outputs: tuple[ValueId, ...]


def cut(flow: DataFlow, reads: Mapping[int, str]) -> list[Segment]:
    """Segments that hold all products, whose positions, ascending, are the keys of `reads`.

    Products that read the same, by the names in `reads`, share a segment. [] without any.
    """
    if not reads:
        return []
    products = list(reads)
    bounds = [0, *_cuts(flow, reads), products[-1] + 1]
    ranges = list(itertools.pairwise(bounds))
    last = bounds[-1]
    segments = []
    for begin, end in ranges:
        later = flow.live_at(end, last)
        segments.append(
            Segment(
                begin,
                end,
                tuple(at for at in products if begin <= at < end),
                tuple(flow.live_at(begin, end)),
                tuple(id_ for id_ in later if begin <= id_.at),
            )
        )
    return segments


def _cuts(flow: DataFlow, reads: Mapping[int, str]) -> list[int]:
    cost = flow.crossing_cost
    places = [
        min(range(before + 1, after + 1), key=lambda at: cost[at])
        for before, after in itertools.pairwise(reads)
        if reads[before] != reads[after]
    ]
    costs = [cost[at] for at in places]
    return [
        at
        for number, at in enumerate(places)
        if costs[number] <= MUCH * min(costs[max(number - NEAR, 0) : number + NEAR + 1])
    ]


@dataclass(frozen=True)
class SegmentModule:
    """A segment as a module; `arguments` are the ids of what it is given beside model inputs."""

    module: ir.Module
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def extract(
    module: ir.Operation,
    model_inputs: Sequence[TensorSpec],
    given: Sequence[ValueId],
    wanted: Sequence[ValueId],
) -> SegmentModule:
    """The module that computes `wanted` from the model's inputs and the values `given`.

    Inputs that are not needed are left out. A value's name is `value_name` of its id.
    """
    clone = module.clone()
    with module.context, ir.Location.unknown():
        function = main_function(clone)
        block = function.regions[0].blocks[0]
        operations = block_operations(clone)
        results = [id_.of(operations) for id_ in wanted]
        operations[-1].erase()
        for op in operations[:-1]:
            if op.name == "cf.assert":  # the model's own checks: of inputs that it has been given
                op.erase()
        with ir.InsertionPoint(block):
            func.ReturnOp(results)
        specs = [TensorSpec(s.name, s.dtype, tuple(s.shape)) for s in model_inputs]
        for id_ in given:
            value = id_.of(operations)
            argument = block.add_argument(value.type, ir.Location.unknown())
            value.replace_all_uses_with(argument)
            specs.append(_spec(id_, value.type))
        _set_type(function, [a.type for a in block.arguments], [r.type for r in results])
        run_upstream("func.func(canonicalize,cse)", clone)
        function = main_function(clone)
        block = function.regions[0].blocks[0]
        used = [any(True for _ in argument.uses) for argument in block.arguments]
        for number in reversed(range(len(used))):
            if not used[number]:
                block.erase_argument(number)
        returned = block_operations(clone)[-1].operands
        _set_type(function, [a.type for a in block.arguments], [r.type for r in returned])
        clone.verify()
    kept = [spec for spec, is_used in zip(specs, used, strict=True) if is_used]
    outputs = [_spec(id_, r.type) for id_, r in zip(wanted, returned, strict=True)]
    return SegmentModule(ir.Module.parse(clone.get_asm(), module.context), kept, outputs)


def value_name(id_: ValueId) -> str:
    return f"value{id_.at}.{id_.result}"


def name_of(value: ir.Value, id_: ValueId | None, model_inputs: Sequence[TensorSpec]) -> str:
    """The name of a value by its id; without one it is an argument, an input of the model."""
    if id_ is not None:
        return value_name(id_)
    return model_inputs[ir.BlockArgument(value).arg_number].name


def _spec(id_: ValueId, type_: ir.Type) -> TensorSpec:
    tensor = ir.RankedTensorType(type_)
    sizes = tuple(None if size == abq.DYNAMIC else size for size in tensor.shape)
    return TensorSpec(value_name(id_), _dtype(tensor.element_type), sizes)


def _dtype(type_: ir.Type) -> str:
    """numpy's name of an element type."""
    text = str(type_)
    known = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i1": "bool"}
    if text in known:
        return known[text]
    return f"int{text[1:]}"


def _set_type(function: ir.Operation, inputs: list[ir.Type], results: list[ir.Type]) -> None:
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
