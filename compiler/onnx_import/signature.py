"""The function of a model: its inputs as values with named sizes, its outputs, what it checks."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import func, ir, tensor
from abqc.errors import ModelError
from onnx import GraphProto, ValueInfoProto

from .boundary import decoded, encoded
from .building.emit import DYNAMIC, Builder
from .result import TensorSpec
from .values import symbolic
from .values.element_types import ElementType, element_type, onnx_name
from .values.symbolic import Dim, Named, parse_dim
from .values.value import Value


class Signature:
    """Opens `@main` with the graph's inputs; `finish` returns the outputs."""

    def __init__(self, graph: GraphProto) -> None:
        self._inputs = [Input.of(value) for value in graph.input]
        direct = {
            dim
            for each in self._inputs
            for dim in each.dims
            if isinstance(symbolic.single_atom(dim), Named)
        }
        for each in self._inputs:
            each.dims = tuple(_with_known_names(dim, direct) for dim in each.dims)
        self.specs = [each.spec for each in self._inputs]

    def open(self) -> tuple[func.FuncOp, ir.Block]:
        """The function, without results yet, and its body."""
        types = [each.type() for each in self._inputs]
        function = func.FuncOp("main", ir.FunctionType.get(types, []))
        return function, function.add_entry_block()

    def bind(self, builder: Builder, block: ir.Block) -> dict[str, Value]:
        """The inputs as values; sizes with equal names are checked to be equal."""
        found: dict[Dim, str] = {}
        later: list[tuple[ir.Value, int, Input]] = []
        for argument, each in zip(block.arguments, self._inputs, strict=True):
            for axis, dim in enumerate(each.dims):
                atom = symbolic.single_atom(dim)
                if isinstance(atom, Named) and dim not in found:
                    found[dim] = each.name
                    builder.bind(atom, _size(builder, argument, axis))
                elif dim.value is None:
                    later.append((argument, axis, each))
        for argument, axis, each in later:
            _check(builder, argument, axis, each, found)
        return {
            each.name: decoded(builder, argument, each.dtype, each.dims)
            for argument, each in zip(block.arguments, self._inputs, strict=True)
        }


class Input:
    """An input of the graph: its type and the names of its sizes."""

    def __init__(self, name: str, dtype: ElementType, dims: tuple[Dim, ...]) -> None:
        self.name = name
        self.dtype = dtype
        self.dims = dims

    @staticmethod
    def of(value: ValueInfoProto) -> Input:
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "of unknown type"
            raise ModelError(f"input '{value.name}' is no tensor ({kind}): only tensors are taken")
        type_ = value.type.tensor_type
        dtype = element_type(type_.elem_type)
        if dtype is None:
            kind = onnx_name(type_.elem_type)
            raise ModelError(f"input '{value.name}' has element type {kind}, which is unsupported")
        if not type_.HasField("shape"):
            raise ModelError(
                f"input '{value.name}' has no rank", hint=f"pin it with --shape {value.name}=..."
            )
        dims = tuple(
            Dim.of(dim.dim_value)
            if dim.HasField("dim_value")
            else parse_dim(dim.dim_param)
            if dim.dim_param
            else Dim.of(Named(f"{value.name}.{axis}"))
            for axis, dim in enumerate(type_.shape.dim)
        )
        return Input(value.name, dtype, dims)

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype.name, public_dims(self.dims, {self.name}))

    def type(self) -> ir.Type:
        sizes = [DYNAMIC if dim.value is None else dim.value for dim in self.dims]
        return ir.RankedTensorType.get(sizes, self.dtype.outside())


def public_dims(dims: Sequence[Dim], anonymous: set[str]) -> tuple[int | str | None, ...]:
    """Sizes as users see them: a number, an expression of the model's names, or None."""

    def public(dim: Dim) -> int | str | None:
        if dim.value is not None:
            return dim.value
        named = all(isinstance(atom, Named) for atom in dim.atoms())
        made_up = any(
            isinstance(atom, Named) and atom.name.rpartition(".")[0] in anonymous
            for atom in dim.atoms()
        )
        return str(dim) if named and not made_up else None

    return tuple(map(public, dims))


def finish(
    builder: Builder, function: func.FuncOp, outputs: Sequence[tuple[str, Value]], names: set[str]
) -> list[TensorSpec]:
    """Return the outputs, in their types outside; their signature. `names` are the inputs'."""
    results = [encoded(builder, value) for _, value in outputs]
    func.ReturnOp(results)
    inputs = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value).inputs
    function.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(inputs, [result.type for result in results])
    )
    return [
        TensorSpec(name, value.dtype.name, public_dims(value.dims, names))
        for name, value in outputs
    ]


def sized_by_inputs(outputs: Sequence[tuple[str, Value]]) -> frozenset[str]:
    """The outputs whose sizes are the same whenever those of the inputs are."""
    return frozenset(
        name
        for name, value in outputs
        if all(isinstance(atom, Named) for dim in value.dims for atom in dim.atoms())
    )


def _with_known_names(dim: Dim, direct: set[Dim]) -> Dim:
    """A size as it is, or one name where an input has no size with a name in it."""
    if all(Dim.of(atom) in direct for atom in dim.atoms()):
        return dim
    return Dim.of(Named(str(dim)))


def _size(builder: Builder, argument: ir.Value, axis: int) -> ir.Value:
    return tensor.DimOp(argument, builder.index(axis)).result


def _check(
    builder: Builder, argument: ir.Value, axis: int, each: Input, found: dict[Dim, str]
) -> None:
    dim = each.dims[axis]
    known = {Dim.of(atom) for atom in dim.atoms()}
    if not known <= set(found):  # a sum of names that no input has by themselves
        builder.bind(Named(str(dim)), _size(builder, argument, axis))
        return
    names = ", ".join(dict.fromkeys(f"'{found[atom]}'" for atom in sorted(known, key=str)))
    size = builder.run_time(_size(builder, argument, axis))
    builder.check_input(
        builder.truth(symbolic.is_equal(size, dim)),
        f"axis {axis} of input '{each.name}' must be '{dim}' as in {names}",
    )
