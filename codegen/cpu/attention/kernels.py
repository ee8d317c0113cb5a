"""The kernels of attention, by numbers of rows of a head.

    many rows   grid units * ceil(group * m / block[0]); a block goes over all keys. Keys are
                transposed on the stack, so that a register has the scores of 16. Products are those
                of f32 or, where the recipe says so, of bf16.
    few rows    grid units * ceil(group * m / block[0]) * splits, splits = ceil(t / split), at least
                1: blocks share the keys of a long cache. Scores are dot products with rows of keys,
                read in place; of quantized caches codes are multiplied. Where there are several
                splits a row's sums, greatest score and total go into the workspace, and `merge`
                (grid batch * heads * m) makes y of them:

                    (i, workspace, y: memref<?xf32>, m, t, heads, splits: index, strides of y)

units = batch * heads / group. A row of the workspace has `workspace_floats`; that of row r of head
h in split s is number ((batch * heads + h) * splits + s) * m + r.

Keys that an added mask hides from all rows of a block, by -1e30 or less (as a causal mask does
beyond its diagonal), are not looked at where every row sees another one: their weights are 0.

Rows whose scores are all minus infinity become NaN, as do those with a NaN or plus infinity among
the keys that are looked at, unless they are guarded. A mask's large finite numbers are added in f32
before the maximum is subtracted, as a softmax without fusion does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import AttentionVariant, Kernel

from ..float_products.cache_rows import CacheRows
from ..float_products.matrix import Matrix, dot_products, row_bases
from ..float_products.tile import COLUMN_BLOCK, PANEL
from .bf16_products import Bf16Products
from .code_products import KeyCodes, ValueCodes
from .float_products import FloatProducts, add_values
from .online import (
    MINUS_INFINITY,
    OnlineSoftmax,
    exp,
    padded_columns,
    shift_of,
    store_result,
)
from .spec import AttentionSpec, Problem

MANY_ROWS = 64  # of a block
MANY_KEYS = 2 * COLUMN_BLOCK  # that come at a time
BF16_KEYS = 3 * COLUMN_BLOCK  # the same in bf16, where what comes for each row weighs more
FEW_ROWS = 8  # of a block
# Rows of a head, up to which there are few: 8 tokens of 4 queries that share keys, whose numbers
# are then those of each alone. From 9 on, blocks of many are 3 to 19 % faster at 160 keys and more.
MOST_FEW = 32
MOST_FEW_BF16 = 4  # where products of many are rounded
FEW_KEYS = 128  # that come at a time
SPLIT_KEYS = 512  # of a block of few rows


def attention_kernels(spec: AttentionSpec) -> tuple[AttentionVariant, ...]:
    """The kernels of `spec`, which cover every m >= 1 once."""
    floats = replace(spec, bf16=False)
    few = f"attention_few_{floats.name}"
    merge = f"attention_merge_{spec.output_name}"
    many = f"attention_{spec.name}"
    uses = frozenset({"bf16"} if spec.bf16 else ())
    most_few = MOST_FEW_BF16 if spec.bf16 else MOST_FEW
    return (
        AttentionVariant(
            Kernel(few, (FEW_ROWS,), partial(_emit_few, few, floats)),
            1,
            most_few,
            SPLIT_KEYS,
            Kernel(merge, (1,), partial(_emit_merge, merge, spec)),
            workspace_floats(spec),
            grouped=True,
        ),
        AttentionVariant(
            Kernel(many, (MANY_ROWS,), partial(_emit_many, many, spec), uses=uses),
            most_few + 1,
            None,
            grouped=True,
        ),
    )


def workspace_floats(spec: AttentionSpec) -> int:
    """Of a row of a split: sums, greatest score, total."""
    return padded_columns(spec) + 2


def _emit_many(name: str, spec: AttentionSpec, module: Any, isa: Isa) -> None:
    with function(module, isa, name, spec.arguments) as (b, i, *arguments):
        problem = Problem(b, spec, arguments)
        blocks = (problem.group * problem.m + (MANY_ROWS - 1)) // MANY_ROWS
        unit, first = i // blocks, i % blocks * MANY_ROWS
        rows = problem.rows(unit, first, MANY_ROWS)
        keys, values = problem.operands(unit)
        at_once = BF16_KEYS if spec.bf16 else MANY_KEYS
        state = OnlineSoftmax.begin(b, problem, rows, MANY_ROWS, at_once)
        products: FloatProducts | Bf16Products
        products = Bf16Products.of(b, state, MANY_ROWS) if spec.bf16 else FloatProducts.of(b, state)
        blind = _seeing(b, state, 0, problem.t) < rows.count if spec.mask == "add" else None
        with b.loop(0, problem.t, at_once) as loop:
            end = b.min(loop.i + at_once, problem.t)

            def add() -> None:
                with b.loop(loop.i, end, COLUMN_BLOCK) as some:
                    products.multiply_keys(keys, some.i, some.i - loop.i)
                products.weigh(loop.i, problem.t)
                products.add_values(loop.i, problem.t, values)

            if blind is None:
                add()
            else:
                with b.when((_seeing(b, state, loop.i, end) > 0) | blind):
                    add()
        state.finish()


def _seeing(b: Builder, state: OnlineSoftmax, begin: Value | int, end: Value) -> Value:
    """How many rows see one of the keys."""
    of_rows = state.problem.of_mask
    alike = (of_rows[1] == 0) & (of_rows[2] == 0)  # one row says it of all
    count = b.select(alike, b.min(state.rows.count, 1), state.rows.count)
    with b.loop(0, count, carry=[b.index(0)]) as row:
        row.carry(row.args[0] + b.select(state.sees(row.i, begin, end), b.index(1), 0))
    return b.select(alike, row.results[0] * state.rows.count, row.results[0])


def _emit_few(name: str, spec: AttentionSpec, module: Any, isa: Isa) -> None:
    arguments = [*spec.arguments, buffer("f32"), INDEX]
    with function(module, isa, name, arguments) as (b, i, *given, workspace, splits):
        problem = Problem(b, spec, given)
        blocks = (problem.group * problem.m + (FEW_ROWS - 1)) // FEW_ROWS
        split, place = i % splits, i // splits
        unit, first = place // blocks, place % blocks * FEW_ROWS
        rows = problem.rows(unit, first, FEW_ROWS)
        keys, values = problem.operands(unit)
        state = OnlineSoftmax.begin(b, problem, rows, FEW_ROWS, FEW_KEYS)
        add_scores: Callable[[Value, Value], None] = partial(_dot_keys, b, problem, state, keys)
        if isinstance(spec.keys, CacheRows):
            add_scores = KeyCodes.of(b, state, keys, FEW_ROWS).add
        value_codes = None
        if isinstance(spec.values, CacheRows):
            value_codes = ValueCodes.of(b, state, values, FEW_ROWS)
        end = b.min((split + 1) * SPLIT_KEYS, problem.t)
        with b.loop(split * SPLIT_KEYS, end, FEW_KEYS) as loop:
            add_scores(loop.i, end)
            state.weigh(loop.i, end)
            if value_codes is not None:
                value_codes.add(loop.i, end)
            else:
                add_values(state, loop.i, end, values)
        if value_codes is not None:
            value_codes.order()
        with b.when(splits == 1):
            state.finish()
        with b.when(splits != 1):
            _keep(b, problem, state, workspace, unit, first, split, splits)


def _dot_keys(
    b: Builder, problem: Problem, state: OnlineSoftmax, keys: Matrix, key: Value, end: Value
) -> None:
    """The products of all queries with the keys from `key` on, as scores."""
    lanes = keys.lanes(b.isa)
    with b.loop(key, b.min(key + FEW_KEYS, end), lanes) as some:
        bases = row_bases(b, keys, some.i, lanes, problem.t)
        with b.loop(0, state.rows.count) as row:
            query = problem.entry(state.rows.queries, row.i)
            products = dot_products(b, problem.q, query, keys, bases)
            b.store(products, state.scores, row.i * FEW_KEYS + (some.i - key))


def _keep(
    b: Builder,
    problem: Problem,
    state: OnlineSoftmax,
    workspace: Value,
    unit: Value,
    first: Value,
    split: Value,
    splits: Value,
) -> None:
    """The state of all rows, into the workspace."""
    columns, floats = padded_columns(problem.spec), workspace_floats(problem.spec)
    with b.loop(0, state.rows.count) as row:
        number = first + row.i
        head = unit * problem.group + number // problem.m
        at = ((head * splits + split) * problem.m + number % problem.m) * floats
        for column in range(0, columns, PANEL):
            value = b.load(state.sums, row.i * columns + column, PANEL)
            b.store(value, workspace, at + column)
        b.store(b.load(state.greatest, row.i), workspace, at + columns)
        b.store(b.load(state.totals, row.i), workspace, at + (columns + 1))


def _emit_merge(name: str, spec: AttentionSpec, module: Any, isa: Isa) -> None:
    """One row of y from its splits."""
    arguments = [buffer("f32")] * 2 + [INDEX] * 7
    columns, floats = padded_columns(spec), workspace_floats(spec)
    with function(module, isa, name, arguments) as (b, i, workspace, y, *rest):
        m, t, heads, splits, of_batch, of_head, of_row = rest
        head, row = i // m, i % m

        def at(split: Value) -> Value:
            return ((head * splits + split) * m + row) * floats

        with b.loop(0, splits, carry=[b.const(MINUS_INFINITY, "f32")]) as loop:
            loop.carry(b.max(b.load(workspace, at(loop.i) + columns), loop.args[0]))
        shift = shift_of(b, loop.results[0])
        panels = range(0, columns, PANEL)
        zeros = [b.const(0.0, f"vector<{PANEL}xf32>")] * len(panels)
        with b.loop(0, splits, carry=[b.const(0.0, "f32"), *zeros]) as loop:
            place = at(loop.i)
            factor = exp(b.load(workspace, place + columns) - shift)
            total = loop.args[0] + b.load(workspace, place + (columns + 1)) * factor
            sums = [
                known + b.load(workspace, place + column, PANEL) * b.splat(factor, PANEL)
                for column, known in zip(panels, loop.args[1:], strict=True)
            ]
            loop.carry(total, *sums)
        total, *sums = loop.results
        to = head // heads * of_batch + head % heads * of_head + row * of_row
        for column, value in zip(panels, sums, strict=True):
            store_result(b, spec, y, to, column, value, total, t)
