"""How runs of a model are timed, and what they give: one run again and again, or steps whose caches
grow; with arrays on the host, or with PyTorch's tensors in a stream of the caller's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from abqc.runtime.model import Model

from .kit import ModelFeed
from .pytorch import pytorch

Arrays = dict[str, Any]
OnHost = Callable[[], tuple[Arrays, float]]  # the outputs, and seconds
# Seconds of the first time and of the second, and the outputs after both.
OnDevice = Callable[[], tuple[float, float, Arrays]]


def timers(model: Model, feed: ModelFeed, inputs: Arrays, runs: int) -> tuple[OnHost, OnDevice]:
    """Without PyTorch, and with it."""
    if feed.steps == 1:
        return partial(_median, model, inputs, runs), partial(_device_median, model, inputs, runs)
    return partial(_decode, model, feed, inputs), partial(_decode_in_place, model, feed, inputs)


def _named(model: Model, outputs: list[Any]) -> Arrays:
    return dict(zip((o.name for o in model.outputs), outputs, strict=True))


def _median(model: Model, inputs: Arrays, runs: int) -> tuple[Arrays, float]:
    outputs = model.run(inputs)
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        outputs = model.run(inputs)
        times.append(time.perf_counter() - begin)
    return _named(model, outputs), statistics.median(times)


def _decode(model: Model, feed: ModelFeed, inputs: Arrays) -> tuple[Arrays, float]:
    """Caches stay on the GPU between the steps."""
    caches = {name: inputs[name] for name in feed.caches}
    outputs: Arrays = {}
    begin = time.perf_counter()
    for step in range(feed.steps):
        outputs = _named(model, model.run(feed.inputs_of(step, inputs) | caches, device="cuda"))
        caches = {name: outputs[output] for name, output in feed.caches.items()}
    outputs = {name: array.numpy() for name, array in outputs.items()}
    return outputs, (time.perf_counter() - begin) / feed.steps


# With PyTorch


def _on_gpu(torch: Any, arrays: Arrays) -> Arrays:
    return {name: torch.from_numpy(np.array(array)).cuda() for name, array in arrays.items()}


def _on_host(tensors: Arrays) -> Arrays:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _seconds(torch: Any, work: Callable[[int], None]) -> float:
    """Of `work(stream)`, by events in a stream of its own."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        begin.record()
        work(stream.cuda_stream)
        end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _device_median(model: Model, inputs: Arrays, runs: int) -> tuple[float, float, Arrays]:
    torch = pytorch()
    given, made = _on_gpu(torch, inputs), _on_gpu(torch, _blank(model, inputs))

    def several(count: int, stream: int) -> None:
        for _ in range(count):
            model.run(given, outputs=made, stream=stream)

    first = _seconds(torch, partial(several, 1))
    _seconds(torch, partial(several, 2))
    again = _seconds(torch, partial(several, runs)) / runs
    return first, again, _on_host(made)


def _blank(model: Model, inputs: Arrays) -> Arrays:
    """Arrays of the sizes of the outputs, with nothing of them in it."""
    outputs = _named(model, model.run(inputs))
    return {name: np.zeros_like(array) for name, array in outputs.items()}


def _decode_in_place(model: Model, feed: ModelFeed, inputs: Arrays) -> tuple[float, float, Arrays]:
    """Seconds a step; every cache has room for all steps, and a step writes behind the last one."""
    torch = pytorch()
    steps = [
        _on_gpu(
            torch,
            {k: v for k, v in feed.inputs_of(i, inputs).items() if k not in feed.caches},
        )
        for i in range(feed.steps)
    ]
    caches = {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, feed.steps))
        for name, tensor in _on_gpu(torch, {n: inputs[n] for n in feed.caches}).items()
    }
    past = {name: inputs[name].shape[-2] for name in feed.caches}
    others = [o.name for o in model.outputs if o.name not in feed.caches.values()]
    blank = _blank(model, feed.inputs_of(0, inputs))
    made = _on_gpu(torch, {name: blank[name] for name in others})

    def decode(stream: int) -> None:
        for i, given in enumerate(steps):
            old = {name: cache[..., : past[name] + i, :] for name, cache in caches.items()}
            new = {
                output: caches[name][..., : past[name] + i + 1, :]
                for name, output in feed.caches.items()
            }
            model.run(given | old, outputs=made | new, stream=stream)

    first, again = (_seconds(torch, decode) / feed.steps for _ in range(2))
    grown = {output: caches[name] for name, output in feed.caches.items()}
    return first, again, _on_host(made | grown)
