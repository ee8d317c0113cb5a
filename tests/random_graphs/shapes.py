"""Steps of a random graph that move elements: reshapes, slices, pads, gathers."""

from __future__ import annotations

import numpy as np

from .draft import Draft, Value, step


def _axis(g: Draft, rank: int) -> int:
    axis = g.choose.randrange(rank)
    return axis - rank if g.coin(0.4) else axis


def _ints(g: Draft, *values: int) -> Value:
    return g.constant(np.array(values, np.int64))


def _factors(g: Draft, count: int) -> list[int]:
    sizes = []
    for prime in (2, 3, 5, 7):
        while count % prime == 0 and count > 0:
            sizes.append(prime)
            count //= prime
    g.choose.shuffle(sizes)
    while len(sizes) > 1 and g.coin():
        sizes[:2] = [sizes[0] * sizes[1]]
    return [*sizes, count] if count > 1 else sizes


@step
def reshape(g: Draft, x: Value) -> Value | None:
    if x.array.size == 0:
        return None
    sizes = _factors(g, x.array.size)
    if g.coin(0.3):
        sizes.insert(g.choose.randrange(len(sizes) + 1), 1)
    if sizes and g.coin(0.7):
        sizes[g.choose.randrange(len(sizes))] = -1
    for axis in range(min(len(sizes), x.rank)):
        if sizes[axis] == x.shape[axis] and g.coin():
            sizes[axis] = 0
    return g.add("Reshape", x, _ints(g, *sizes))


@step
def merge_axes(g: Draft, x: Value) -> Value | None:
    """By sizes taken from Shape, or by Flatten."""
    if x.rank < 2 or x.array.size == 0:
        return None
    if g.coin(0.3):
        return g.add("Flatten", x, axis=g.choose.randrange(x.rank + 1))
    axis = g.choose.randrange(x.rank)
    kept = g.add("Shape", x, start=axis, end=axis + 1, kept=False)
    parts = [kept, _ints(g, -1)] if g.coin() else [_ints(g, -1), kept]
    if kept is None:
        return None
    target = g.add("Concat", *parts, axis=0, kept=False)
    return g.add("Reshape", x, target) if target else None


@step
def transpose(g: Draft, x: Value) -> Value | None:
    if not x.rank or g.coin(0.2):
        return g.add("Transpose", x)
    perm = list(range(x.rank))
    g.choose.shuffle(perm)
    return g.add("Transpose", x, perm=perm)


@step
def unsqueeze(g: Draft, x: Value) -> Value | None:
    if x.rank > 4:
        return None
    count = g.choose.choice([1, 1, 2]) if x.rank < 4 else 1
    axes = g.choose.sample(range(x.rank + count), count)
    return g.add("Unsqueeze", x, _ints(g, *axes))


@step
def squeeze(g: Draft, x: Value) -> Value | None:
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if not ones:
        return None
    return g.add("Squeeze", x, _ints(g, *g.choose.sample(ones, g.choose.randint(1, len(ones)))))


@step
def expand(g: Draft, x: Value) -> Value | None:
    target = [g.choose.choice([2, 3]) if size == 1 and g.coin() else size for size in x.shape]
    target = [1 if g.coin(0.2) else size for size in target]
    return g.add("Expand", x, _ints(g, *([2] * g.coin(0.2)), *target))


@step
def tile(g: Draft, x: Value) -> Value | None:
    return g.add("Tile", x, _ints(g, *(g.choose.choice([1, 1, 2, 3]) for _ in x.shape)))


@step
def concat(g: Draft, x: Value) -> Value | None:
    if not x.rank:
        return None
    axis = _axis(g, x.rank)
    shape = list(x.shape)
    shape[axis] = g.choose.choice([0, 1, 2, 3])
    parts = [x, g.operand(x.dtype, shape), *([x] * g.coin(0.3))]
    g.choose.shuffle(parts)
    return g.add("Concat", *parts, axis=axis)


@step
def split(g: Draft, x: Value) -> Value | None:
    axes = [axis for axis, size in enumerate(x.shape) if size > 1]
    if not axes:
        return None
    axis = g.choose.choice(axes)
    first = g.choose.randrange(1, x.shape[axis])
    if g.coin():
        return g.add("Split", x, results=2, axis=axis, num_outputs=2)
    return g.add("Split", x, _ints(g, first, x.shape[axis] - first), results=2, axis=axis)


@step
def cut(g: Draft, x: Value) -> Value | None:
    if not x.rank:
        return None
    axes = g.choose.sample(range(x.rank), g.choose.randint(1, min(2, x.rank)))
    bounds = [g.choose.choice([-9999, -3, -1, 0, 1, 2, 3, 9999]) for _ in range(2 * len(axes))]
    steps = [g.choose.choice([1, 1, 1, 2, 3, -1, -2]) for _ in axes]
    starts, ends = bounds[: len(axes)], bounds[len(axes) :]
    return g.add("Slice", x, _ints(g, *starts), _ints(g, *ends), _ints(g, *axes), _ints(g, *steps))


@step
def pad(g: Draft, x: Value) -> Value | None:
    if not x.rank or x.dtype in ("bool", "uint16", "int16"):
        return None
    mode = g.choose.choice(["constant", "constant", "reflect", "edge", "wrap"])
    if mode != "constant" and 0 in x.shape:
        return None
    low = -1 if mode == "constant" else 0
    most = {"reflect": [size - 1 for size in x.shape], "wrap": list(x.shape)}
    limits = most.get(mode, [2] * x.rank)
    pads = [g.choose.randint(low, max(0, min(2, limit))) for limit in limits * 2]
    if any(a + b + n < 0 for a, b, n in zip(pads, pads[x.rank :], x.shape, strict=False)):
        return None
    value = [g.constant(np.array(2, x.dtype))] if mode == "constant" and g.coin() else []
    return g.add("Pad", x, _ints(g, *pads), *value, mode=mode)


@step
def triangle(g: Draft, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    k = g.constant(np.array(g.choose.randint(-2, 2), np.int64))
    return g.add("Trilu", x, k, upper=g.choose.randrange(2))


@step
def depth_and_space(g: Draft, x: Value) -> Value | None:
    if x.rank != 4 or x.dtype != "float32":
        return None
    if x.shape[1] % 4 == 0:
        return g.add("DepthToSpace", x, blocksize=2, mode=g.choose.choice(["DCR", "CRD"]))
    return g.add("SpaceToDepth", x, blocksize=2)


@step
def gather(g: Draft, x: Value) -> Value | None:
    if not x.rank:
        return None
    axis = _axis(g, x.rank)
    if not x.shape[axis]:
        return None
    indices = g.indices(x.shape[axis], g.shape(g.choose.choice([0, 1, 2])))
    return g.add("Gather", x, indices, axis=axis)


@step
def gather_elements(g: Draft, x: Value) -> Value | None:
    if not x.rank or 0 in x.shape:
        return None
    axis = _axis(g, x.rank)
    shape = [g.choose.randint(1, size) for size in x.shape]
    shape[axis] = g.choose.randint(1, 4)
    return g.add("GatherElements", x, g.indices(x.shape[axis], shape), axis=axis)


@step
def gather_nd(g: Draft, x: Value) -> Value | None:
    if not x.rank or 0 in x.shape:
        return None
    depth = g.choose.randint(1, min(2, x.rank))
    indices = np.stack(
        [[g.choose.randrange(-size, size) for _ in range(3)] for size in x.shape[:depth]], axis=-1
    )
    return g.add("GatherND", x, g.given(indices.astype(np.int64)))


@step
def scatter_elements(g: Draft, x: Value) -> Value | None:
    """Each place once, unless the reduction takes several in any order."""
    if not x.rank or 0 in x.shape or x.dtype == "bool":
        return None
    axis = g.choose.randrange(x.rank)
    size = x.shape[axis]
    shape = list(x.shape)
    reduction = g.choose.choice(["none", "none", "add", "max", "min", "mul"])
    if reduction == "none":
        order = list(range(size))
        g.choose.shuffle(order)
        shape[axis] = g.choose.randint(1, size)
        line = np.array(order[: shape[axis]], np.int64)
        lines = line.reshape([-1 if a == axis else 1 for a in range(x.rank)])
        indices = g.given(np.broadcast_to(lines, shape).copy())
    else:
        shape[axis] = g.choose.randint(1, 3)
        indices = g.indices(size, shape)
    updates = g.operand(x.dtype, shape)
    return g.add("ScatterElements", x, indices, updates, axis=axis, reduction=reduction)


@step
def one_hot(g: Draft, x: Value) -> Value | None:
    if x.dtype not in ("int32", "int64") or x.rank > 3:
        return None
    depth = g.constant(np.array(4, np.int64))
    values = g.constant(np.array([0.5, 2], np.float32))
    return g.add("OneHot", x, depth, values, axis=g.choose.choice([-1, 0]))


@step
def positions(g: Draft, x: Value) -> Value | None:
    """Sizes that depend on data."""
    if x.dtype == "bool" or not x.exact or not x.rank:
        return None
    return g.add("NonZero", x)


@step
def compress(g: Draft, x: Value) -> Value | None:
    if not x.rank:
        return None
    axis = g.choose.randrange(x.rank)
    return g.add("Compress", x, g.operand("bool", [x.shape[axis]]), axis=axis)
