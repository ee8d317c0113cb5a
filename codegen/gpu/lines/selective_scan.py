"""Selective scans: a thread goes along the sequence with up to 8 states of a channel.

A channel's N states lie in the registers of `lanes` neighbouring threads, state n in thread
n % lanes; y is summed over them by shuffles. Beyond 256 states a thread has more than 8. See
dialects/scan_spec.py for the arguments, which are pointers and i32 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel
from abqc.dialects.scan_spec import ScanSpec

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel

THREADS = 128
STATES = 8  # of a thread
LOG2_E = 1.4426950408889634
LOG1P_TERMS = 8  # of 2 artanh(u / (2 + u)), for u up to 1: to 2^-26


def selective_scan_kernel(spec: ScanSpec) -> Kernel:
    return Kernel(spec.name, (THREADS // lanes_of(spec),), partial(_emit, spec))


def lanes_of(spec: ScanSpec) -> int:
    """The threads that share a channel."""
    lanes = 1
    while lanes < WARP and lanes * STATES < spec.states:
        lanes *= 2
    return lanes


class _Operand:
    """One of x, delta, b and c, from the sample on; `scale` and `zero` where it has codes."""

    def __init__(self, b: GpuBuilder, source: Value, parameters: Sequence[Value]) -> None:
        self.b, self.source = b, source
        self.parameters = [
            b.load(pointer, element, cache="nc")
            for pointer, element in zip(parameters, ("f32", "i32"), strict=False)
        ]

    def at(self, place: Value, there: Value) -> Value:
        """Element `place` (i64), 0 where it is not `there`."""
        b = self.b

        def load() -> list[Value]:
            if not self.parameters:
                return [b.load(self.source, "f32", place * 4, cache="nc")]
            scale, zero = self.parameters
            code = b.sext(b.load(self.source, "i8", place, cache="nc"), "i32")
            return [b.to_float(code - zero) * scale]

        return b.either(there, ["f32"], load, lambda: [b.const(0.0, "f32")])[0]


def _emit(spec: ScanSpec, module: Any, arch: GpuArch) -> None:
    count = 5 + spec.initial + 8 * spec.codes + 2
    types = [POINTER] * count + ["i32", "i32"]
    with kernel(module, arch, spec.name, types, threads=THREADS) as (b, block, *arguments):
        x, delta, a, input_of, output_of, *rest = arguments
        initial = rest.pop(0) if spec.initial else None
        pairs = [[rest.pop(0), rest.pop(0)] if spec.codes else [] for _ in range(4)]
        sources = (x, delta, input_of, output_of)
        operands = [_Operand(b, s, pair) for s, pair in zip(sources, pairs, strict=True)]
        y, state, steps, channels = rest
        _Thread(spec, b, block, steps, channels).run(operands, a, initial, y, state)


class _Thread:
    """The part of a channel that a thread has."""

    def __init__(
        self, spec: ScanSpec, b: GpuBuilder, block: Value, steps: Value, channels: Value
    ) -> None:
        self.spec, self.b, self.steps = spec, b, steps
        self.lanes = lanes_of(spec)
        in_block = THREADS // self.lanes
        blocks = b.ceil_div(channels, in_block)
        channel = block % blocks * in_block + b.thread // self.lanes
        self.lane = b.thread % self.lanes
        self.there = channel < channels
        self.sample, self.channel = b.wide(block // blocks), b.wide(channel)
        self.channels = b.wide(channels)

    def run(
        self,
        operands: Sequence[_Operand],
        a: Value,
        initial: Value | None,
        y: Value,
        state: Value,
    ) -> None:
        b, spec = self.b, self.spec
        of_sample = (self.sample * self.channels + self.channel) * spec.states
        rates = [rate * LOG2_E for rate in self._gather(a, self.channel * spec.states)]
        begin = self._gather(initial, of_sample)
        with b.loop(0, self.steps, 1, begin) as loop:
            step = self.sample * b.wide(self.steps) + b.wide(loop.i)
            at = step * self.channels + self.channel
            states, total = self._step(operands, at, step * spec.states, rates, loop.args)
            with b.when(self.there & (self.lane == 0)):
                b.store(total, y, at * 4)
            loop.carry(*states)
        for n, value in zip(self._numbers(), loop.results, strict=True):
            with b.when(self.there & (n < spec.states)):
                b.store(value, state, (of_sample + b.wide(n)) * 4)

    def _numbers(self) -> list[Value]:
        """The states that this thread has."""
        return [self.lane + first for first in range(0, self.spec.states, self.lanes)]

    def _gather(self, source: Value | None, begin: Value) -> list[Value]:
        """Element begin + n for each of the states; zeros without a source."""
        b, zero = self.b, self.b.const(0.0, "f32")
        if source is None:
            return [zero for _ in self._numbers()]
        operand = _Operand(b, source, [])
        return [
            operand.at(begin + b.wide(n), self.there & (n < self.spec.states))
            for n in self._numbers()
        ]

    def _step(
        self,
        operands: Sequence[_Operand],
        at: Value,
        parameters: Value,
        rates: Sequence[Value],
        states: Sequence[Value],
    ) -> tuple[list[Value], Value]:
        """The states after a step, and y."""
        b, (x, delta, input_of, output_of) = self.b, operands
        width = delta.at(at, self.there)
        if self.spec.softplus:
            width = _softplus(b, width)
        drive = width * x.at(at, self.there)
        total, after = b.const(0.0, "f32"), []
        for n, rate, before in zip(self._numbers(), rates, states, strict=True):
            known = n < self.spec.states
            place = parameters + b.wide(n)
            decay = b.exp2(width * rate)
            h = b.fma(decay, before, drive * input_of.at(place, known))
            total = b.fma(h, output_of.at(place, known), total)
            after.append(h)
        return after, b.warp_sum(total, self.lanes)


def _softplus(b: GpuBuilder, x: Value) -> Value:
    """max(x, 0) + log(1 + u), u = e^-|x|; the logarithm is 2 artanh(u / (2 + u)), as a series."""
    u = b.exp2(b.abs(x) * -LOG2_E)
    s = u / (u + 2.0)
    square = s * s
    series = b.const(1.0 / (2 * LOG1P_TERMS - 1), "f32")
    for k in reversed(range(LOG1P_TERMS - 1)):
        series = b.fma(series, square, b.const(1.0 / (2 * k + 1), "f32"))
    return b.max(x, b.const(0.0, "f32")) + s * 2.0 * series
