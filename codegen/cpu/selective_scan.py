"""Selective scans: a task goes along the sequence with the states of 16 channels of a sample.

The states and the rows of `a` lie on the stack, N vectors of 16 channels each. A step takes the
vectors of delta and x, and for every n the numbers b and c. See dialects/scan_spec.py for the
arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.dialects.mlir import math

from ...dialects.scan_spec import ScanSpec
from ..builder import INDEX, Builder, Value, buffer, function
from ..strategy import Kernel
from .float_products.tile import multiply_add

LANES = 16  # channels of a task
UNROLLED = 4  # states in a turn of the inner loop, whose exponentials do not wait for each other


def selective_scan_kernel(spec: ScanSpec) -> Kernel:
    return Kernel(spec.name, (LANES,), partial(_emit, spec))


@dataclass(frozen=True)
class _Operand:
    """One of x, delta, b and c; `scale` and `zero` where it has codes."""

    b: Builder
    source: Value
    scale: Value | None = None
    zero: Value | None = None

    def vector(self, at: Value, mask: Value) -> Value:
        return self._decoded(self.b.load(self.source, at, LANES, mask))

    def number(self, at: Value) -> Value:
        """One element in all lanes."""
        return self.b.splat(self._decoded(self.b.load(self.source, at)), LANES)

    def _decoded(self, value: Value) -> Value:
        if self.scale is None or self.zero is None:
            return value
        lanes = value.lanes if value.type != self.b.const(0, "i8").type else 0
        scale, zero = self.scale, self.zero
        if lanes:
            scale, zero = self.b.splat(scale, lanes), self.b.splat(zero, lanes)
        return self.b.to_float(self.b.sext(value, "i32") - zero) * scale


def _emit(spec: ScanSpec, module: Any, isa: Any) -> None:
    scanned, floats = buffer("i8" if spec.codes else "f32"), buffer("f32")
    arguments = [scanned, scanned, floats, scanned, scanned]
    arguments += [floats] * spec.initial + [floats, buffer("i32")] * (4 * spec.codes)
    arguments += [floats, floats, INDEX, INDEX]
    with function(module, isa, spec.name, arguments) as (builder, i, x, delta, a, b, c, *rest):
        initial = rest.pop(0) if spec.initial else None
        operands = []
        for source in (x, delta, b, c):
            scale = zero = None
            if spec.codes:
                scale, zero = (builder.load(rest.pop(0), 0) for _ in range(2))
            operands.append(_Operand(builder, source, scale, zero))
        y, state, steps, channels = rest
        _Task(spec, builder, i, steps, channels).run(operands, a, initial, y, state)


class _Task:
    """A block of channels of a sample."""

    def __init__(self, spec: ScanSpec, b: Builder, i: Value, steps: Value, channels: Value) -> None:
        self.spec, self.b, self.steps, self.channels = spec, b, steps, channels
        blocks = (channels + (LANES - 1)) // LANES
        self.sample = i // blocks
        self.first = i % blocks * LANES
        self.count = b.min(channels - self.first, b.index(LANES))
        self.mask = b.mask(LANES, self.count)
        self.states = b.alloca(spec.states * LANES, "f32")
        self.rates = b.alloca(spec.states * LANES, "f32")

    def run(
        self,
        operands: list[_Operand],
        a: Value,
        initial: Value | None,
        y: Value,
        state: Value,
    ) -> None:
        b = self.b
        of_sample = (self.sample * self.channels + self.first) * self.spec.states
        self._gather(a, self.first * self.spec.states, self.rates)
        self._gather(initial, of_sample, self.states)
        with b.loop(0, self.steps) as loop:
            step = self.sample * self.steps + loop.i
            at = step * self.channels + self.first
            b.store(self._step(operands, at, step * self.spec.states), y, at, self.mask)
        with b.loop(0, self.count) as lane, b.loop(0, self.spec.states) as n:
            value = b.load(self.states, n.i * LANES + lane.i)
            b.store(value, state, of_sample + (lane.i * self.spec.states + n.i))

    def _gather(self, source: Value | None, begin: Value, target: Value) -> None:
        """target[n, lane] = source[begin + lane * N + n]; zeros without a source, and behind the
        last channel."""
        b = self.b
        with b.loop(0, self.spec.states) as n:
            b.store(b.splat(b.const(0.0, "f32"), LANES), target, n.i * LANES)
        if source is None:
            return
        with b.loop(0, self.count) as lane, b.loop(0, self.spec.states) as n:
            value = b.load(source, begin + (lane.i * self.spec.states + n.i))
            b.store(value, target, n.i * LANES + lane.i)

    def _step(self, operands: list[_Operand], at: Value, parameters: Value) -> Value:
        """y of all channels."""
        b, (x, delta, input_of, output_of) = self.b, operands
        width = delta.vector(at, self.mask)
        if self.spec.softplus:
            width = _softplus(b, width)
        drive = width * x.vector(at, self.mask)

        def advance(n: Value, total: Value) -> Value:
            row = n * LANES
            decay = Value(math.exp((width * b.load(self.rates, row, LANES)).ir))
            driven = drive * input_of.number(parameters + n)
            h = multiply_add(b, decay, b.load(self.states, row, LANES), driven)
            b.store(h, self.states, row)
            return multiply_add(b, h, output_of.number(parameters + n), total)

        whole = self.spec.states // UNROLLED * UNROLLED
        total = b.splat(b.const(0.0, "f32"), LANES)
        with b.loop(0, whole, UNROLLED, [total]) as loop:
            (total,) = loop.args
            for offset in range(UNROLLED):
                total = advance(loop.i + offset, total)
            loop.carry(total)
        (total,) = loop.results
        for n in range(whole, self.spec.states):
            total = advance(b.index(n), total)
        return total


def _softplus(b: Builder, x: Value) -> Value:
    """log(1 + e^x) without overflow."""
    small = Value(math.log1p(math.exp((-b.abs(x)).ir)))
    return b.max(x, b.splat(b.const(0.0, "f32"), LANES)) + small
