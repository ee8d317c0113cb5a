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
from abqc.dialects.element_types import numpy_name
from abqc.dialects.mlir import arith, cf, func, ir, run_upstream, tensor
from abqc.passes.infrastructure import main_function
from abqc.passes.loops.axis_blocks import parallel_loop
from abqc.passes.resolve_dims import dimension_or_query, mixed_sizes
from abqc.runtime.tensor_spec import TensorSpec

from .dataflow import DataFlow, ValueId, block_operations

# A place between two products that read different values is a cut where no place near it has much
# less to keep.
NEAR = 8
MUCH = 4


@dataclass(frozen=True)
class Segment:
    """Operations `begin` to `end` - 1 of the model.

    `inputs` are expensive tensors of earlier segments that they read; `outputs` those of this
    segment that later ones read; `products` the positions of the products with constant weights.
    """

    begin: int
    end: int
    products: tuple[int, ...]
    inputs: tuple[ValueId, ...]
    outputs: tuple[ValueId, ...]


def cut(flow: DataFlow, reads: Mapping[int, str], *, whole: bool = False) -> list[Segment]:
    """Segments that hold all products, whose positions are the keys of `reads`.

    Products that read the same, by the names in `reads`, share a segment. [] without any. `whole`:
    fewer, larger ones, up to what the model returns, which the last one puts out.
    """
    if not reads:
        return []
    reads = dict(sorted(reads.items()))
    products = list(reads)
    last = len(flow.operations) - 1 if whole else products[-1] + 1
    bounds = [0, *_cuts(flow, reads, 1 if whole else MUCH), last]
    segments = []
    for begin, end in itertools.pairwise(bounds):
        later = flow.live_at(end, last + 1 if whole else last)
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


def _cuts(flow: DataFlow, reads: Mapping[int, str], much: int) -> list[int]:
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
        if costs[number] <= much * min(costs[max(number - NEAR, 0) : number + NEAR + 1])
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
    noisy: Sequence[ValueId] = (),
) -> SegmentModule:
    """The module that computes `wanted` from the model's inputs and the values `given`.

    Inputs that are not needed are left out. A value's name is `value_name` of its id. To values
    that are `noisy` another input is added, as large as they are, whose name is `noise_name`.
    """
    clone = module.clone()
    with module.context, ir.Location.unknown():
        function = main_function(clone)
        block = function.regions[0].blocks[0]
        operations = block_operations(clone)
        disturbed = {id_: _add_argument(id_.of(operations), block) for id_ in noisy}
        results = [disturbed.get(id_) or id_.of(operations) for id_ in wanted]
        operations[-1].erase()
        for op in operations[:-1]:
            if op.name == "cf.assert":  # the model's own checks: of inputs that it has been given
                op.erase()
        with ir.InsertionPoint(block):
            func.ReturnOp(results)
        specs = [TensorSpec(s.name, s.dtype, tuple(s.shape)) for s in model_inputs]
        specs += [_spec(noise_name(id_), id_.of(operations).type) for id_ in noisy]
        for id_ in given:
            value = id_.of(operations)
            argument = block.add_argument(value.type, ir.Location.unknown())
            value.replace_all_uses_with(argument)
            specs.append(_spec(value_name(id_), value.type))
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
    outputs = [_spec(value_name(id_), r.type) for id_, r in zip(wanted, returned, strict=True)]
    return SegmentModule(ir.Module.parse(clone.get_asm(), module.context), kept, outputs)


def value_name(id_: ValueId) -> str:
    return f"value{id_.at}.{id_.result}"


def noise_name(id_: ValueId) -> str:
    return f"noise{id_.at}.{id_.result}"


def name_of(value: ir.Value, id_: ValueId | None, model_inputs: Sequence[TensorSpec]) -> str:
    """The name of a value by its id; without one it is an argument, an input of the model."""
    if id_ is not None:
        return value_name(id_)
    return model_inputs[ir.BlockArgument(value).arg_number].name


def _add_argument(value: ir.Value, block: ir.Block) -> ir.Value:
    """An argument of the value's type is added to it wherever it is read."""
    noise = block.add_argument(value.type, ir.Location.unknown())
    known, as_is = list(value.uses), ir.AffineMap.get_identity(len(abq.shape(value)))
    with ir.InsertionPoint.after(value.owner):
        for axis, size in enumerate(abq.shape(value)):
            if size == abq.DYNAMIC:  # it may depend on data, which other noise has changed
                sizes = (dimension_or_query(each, axis) for each in (value, noise))
                fits = arith.CmpIOp(arith.CmpIPredicate.eq, *sizes).result
                cf.AssertOp(fits, f"the noise has another size along axis {axis}")
        empty = tensor.EmptyOp(mixed_sizes(value), abq.element(value)).result
        total = parallel_loop(
            [value, noise], [as_is, as_is], empty, lambda xs: arith.AddFOp(*xs).result
        )
    for use in known:
        use.owner.operands[use.operand_number] = total
    return total


def _spec(name: str, type_: ir.Type) -> TensorSpec:
    ranked = ir.RankedTensorType(type_)
    sizes = tuple(None if size == abq.DYNAMIC else size for size in ranked.shape)
    dtype = numpy_name(ranked.element_type)
    assert dtype is not None, f"{name}: {type_}"
    return TensorSpec(name, dtype, sizes)


def _set_type(function: ir.Operation, inputs: list[ir.Type], results: list[ir.Type]) -> None:
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
