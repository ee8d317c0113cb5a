"""The sizes of tensors, and integers computed from them, as polynomials over unknown sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from abqc.dialects.mlir import arith, ir

from .polynomials import Polynomial, add, constant, divide, multiply, product

DYNAMIC = ir.ShapedType.get_dynamic_size()
EQ, NE, SLT, SLE, SGT, SGE = (
    int(getattr(arith.CmpIPredicate, name)) for name in ("eq", "ne", "slt", "sle", "sgt", "sge")
)


Place = tuple[ir.Value, int]  # a tensor and an axis
Same = dict[Place, list[Place]]  # sizes that equal the sum of others


class Sizes:
    """Polynomials of SSA integers and of the sizes of SSA tensors.

    `same` says which sizes are sums of others. Casts between integers
    are read as identities: sizes fit into all of them.
    """

    def __init__(self, same: Same) -> None:
        self._same = same
        self._integers: dict[ir.Value, Polynomial] = {}
        self._dims: dict[tuple[ir.Value, int], Polynomial] = {}
        self._atoms: dict[object, int] = {}
        self._natural: set[int] = set()  # atoms that are sizes, so never negative

    def of(self, value: ir.Value) -> Polynomial:
        """An integer."""
        if value not in self._integers:
            self._integers[value] = self._integer(value)
        return self._integers[value]

    def dim(self, value: ir.Value, axis: int) -> Polynomial:
        """The size of a tensor along an axis."""
        if (value, axis) not in self._dims:
            self._dims[value, axis] = self._dim(value, axis)
        return self._dims[value, axis]

    def dims(self, value: ir.Value) -> list[Polynomial]:
        return [self.dim(value, axis) for axis in range(ir.RankedTensorType(value.type).rank)]

    def truth(self, value: ir.Value) -> bool | None:
        """What a comparison of sizes yields, None where that depends on them."""
        op = value.owner
        if isinstance(op, ir.Block) or op.name != "arith.cmpi":
            return None
        if str(op.operands[0].type) not in ("index", "i64"):
            return None
        left, right = (self.of(operand) for operand in op.operands)
        predicate = ir.IntegerAttr(op.attributes["predicate"]).value
        return self._compare(predicate, add(left, right, -1))

    def _compare(self, predicate: int, difference: Polynomial) -> bool | None:
        """Whether `difference` (left - right) is such as the predicate says."""
        below, above = multiply(difference, constant(-1)), difference
        if predicate in (EQ, NE):
            if not difference:
                return predicate == EQ
            apart = self._is_natural(add(above, constant(-1))) or self._is_natural(
                add(below, constant(-1))
            )
            return predicate == NE if apart else None
        if predicate in (SGT, SLE):
            answer = self._compare(SLT, below)
            return answer if predicate == SGT or answer is None else not answer
        if predicate not in (SLT, SGE):
            return None
        if self._is_natural(above):
            return predicate == SGE
        if self._is_natural(add(below, constant(-1))):
            return predicate == SLT
        return None

    def _is_natural(self, polynomial: Polynomial) -> bool:
        """Whether it is never negative, because nothing in it is."""
        return all(
            coefficient > 0 and self._natural.issuperset(atoms)
            for atoms, coefficient in polynomial.items()
        )

    def _atom(self, key: object, *, size: bool = False) -> Polynomial:
        number = self._atoms.setdefault(key, len(self._atoms))
        if size:
            self._natural.add(number)
        return {(number,): 1}

    def _integer(self, value: ir.Value) -> Polynomial:
        op = value.owner
        if isinstance(op, ir.Block):
            return self._atom(value)
        rule = INTEGERS.get(op.name)
        result = rule(self, op) if rule else None
        return self._atom(self._key(op) or value) if result is None else result

    def _key(self, op: ir.Operation) -> object | None:
        """Equal operations on equal sizes make equal sizes."""
        if not op.name.startswith("arith.") or op.name == "arith.constant":
            return None
        operands = tuple(frozenset(self.of(operand).items()) for operand in op.operands)
        return op.name, str(op.attributes), operands

    def _dim(self, value: ir.Value, axis: int) -> Polynomial:
        size = ir.RankedTensorType(value.type).shape[axis]
        if size != DYNAMIC:
            return constant(size)
        op = value.owner
        if isinstance(op, ir.Block):
            places = self._same.get((value, axis), [(value, axis)])
            return reduce(add, (self._atom(place, size=True) for place in places))
        if op.name.startswith("linalg."):
            return self._destination(op, value, axis)
        rule = DIMS.get(op.name)
        result = rule(self, op, axis) if rule else None
        return self._atom((value, axis), size=True) if result is None else result

    def _destination(self, op: ir.Operation, value: ir.Value, axis: int) -> Polynomial:
        """Structured operations return tensors like those that they are given to write to."""
        operands, results = list(op.operands), list(op.results)
        return self.dim(operands[len(operands) - len(results) + results.index(value)], axis)


def axis_of(op: ir.Operation) -> int | None:
    """The axis of a tensor.dim, if it is constant."""
    owner = op.operands[1].owner
    if isinstance(owner, ir.Block) or owner.name != "arith.constant":
        return None
    return ir.IntegerAttr(owner.attributes["value"]).value


def _constant(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    attribute = op.attributes["value"]
    return constant(attribute.value) if isinstance(attribute, ir.IntegerAttr) else None


def _cast(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    return sizes.of(op.operands[0])


def _add(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    return add(sizes.of(op.operands[0]), sizes.of(op.operands[1]))


def _subtract(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    return add(sizes.of(op.operands[0]), sizes.of(op.operands[1]), -1)


def _multiply(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    return multiply(sizes.of(op.operands[0]), sizes.of(op.operands[1]))


def _divide(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    return divide(sizes.of(op.operands[0]), sizes.of(op.operands[1]))


def _either(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    first, second = (sizes.of(operand) for operand in op.operands)
    return first if first == second else None


def _select(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    condition = sizes.truth(op.operands[0])
    return None if condition is None else sizes.of(op.operands[1 if condition else 2])


def _read_dim(sizes: Sizes, op: ir.Operation) -> Polynomial | None:
    axis = axis_of(op)
    return None if axis is None else sizes.dim(op.operands[0], axis)


INTEGERS: dict[str, Callable[[Sizes, ir.Operation], Polynomial | None]] = {
    "arith.constant": _constant,
    "arith.index_cast": _cast,
    "arith.extsi": _cast,
    "arith.addi": _add,
    "arith.subi": _subtract,
    "arith.muli": _multiply,
    "arith.divsi": _divide,
    "arith.maxui": _either,
    "arith.maxsi": _either,
    "arith.select": _select,
    "tensor.dim": _read_dim,
}


def _mixed(
    sizes: Sizes, static: Sequence[int], dynamic: Sequence[ir.Value], axis: int
) -> Polynomial:
    """One entry of a list that MLIR keeps half in an attribute, half in operands."""
    if static[axis] != DYNAMIC:
        return constant(static[axis])
    return sizes.of(dynamic[[at for at, s in enumerate(static) if s == DYNAMIC].index(axis)])


def _integers(op: ir.Operation, name: str) -> list[int]:
    return list(ir.DenseI64ArrayAttr(op.attributes[name]))


def _segment(op: ir.Operation, index: int) -> list[ir.Value]:
    lengths = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
    start = sum(lengths[:index])
    return list(op.operands)[start : start + lengths[index]]


def _empty(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    return _mixed(sizes, ir.RankedTensorType(op.results[0].type).shape, list(op.operands), axis)


def _expand(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    return _mixed(sizes, _integers(op, "static_output_shape"), list(op.operands)[1:], axis)


def _collapse(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    group = [ir.IntegerAttr(a).value for a in ir.ArrayAttr(op.attributes["reassociation"])[axis]]
    return product(sizes.dim(op.operands[0], at) for at in group)


def _slice(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    static = _integers(op, "static_sizes")
    if len(static) != ir.RankedTensorType(op.results[0].type).rank:
        return None
    return _mixed(sizes, static, _segment(op, 2), axis)


def _pad(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    low = _mixed(sizes, _integers(op, "static_low"), _segment(op, 1), axis)
    high = _mixed(sizes, _integers(op, "static_high"), _segment(op, 2), axis)
    return add(add(sizes.dim(op.operands[0], axis), low), high)


def _insert(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    return sizes.dim(op.operands[1], axis)


def _concat(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    if ir.IntegerAttr(op.attributes["dim"]).value != axis:
        return sizes.dim(op.operands[0], axis)
    total = constant(0)
    for operand in op.operands:
        total = add(total, sizes.dim(operand, axis))
    return total


def _reshape(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    shape = op.operands[1].owner
    if isinstance(shape, ir.Block) or shape.name != "tensor.from_elements":
        return None
    return sizes.of(shape.operands[axis])


def _first_operand(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    return sizes.dim(op.operands[0], axis)


def _indices(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    return sizes.dim(op.operands[1], axis)


def _images(sizes: Sizes, op: ir.Operation, axis: int) -> Polynomial | None:
    return sizes.dim(op.operands[0], 0) if axis == 0 else None


DIMS: dict[str, Callable[[Sizes, ir.Operation, int], Polynomial | None]] = {
    "abq.conv": _images,
    "abq.gather": _indices,
    "abq.matmul": _first_operand,
    "tensor.cast": _first_operand,
    "tensor.collapse_shape": _collapse,
    "tensor.concat": _concat,
    "tensor.empty": _empty,
    "tensor.expand_shape": _expand,
    "tensor.extract_slice": _slice,
    "tensor.insert_slice": _insert,
    "tensor.pad": _pad,
    "tensor.reshape": _reshape,
}
