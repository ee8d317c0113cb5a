"""A run whose loop does not end, or ends late, can be interrupted."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.runtime.model import Model
from abqc.runtime.tensor_spec import TensorSpec
from ir_model import build

# Counts up by `step` until `limit` is reached, which it never is where step is 0.
TEXT = """
func.func @main(%step: tensor<i64>, %limit: tensor<i64>) -> tensor<i64> {
  %zero = arith.constant 0 : i64
  %by = tensor.extract %step[] : tensor<i64>
  %end = tensor.extract %limit[] : tensor<i64>
  %n = scf.while (%i = %zero) : (i64) -> i64 {
    %more = arith.cmpi slt, %i, %end : i64
    scf.condition(%more) %i : i64
  } do {
  ^bb0(%i: i64):
    %next = arith.addi %i, %by : i64
    scf.yield %next : i64
  }
  %y = tensor.from_elements %n : tensor<i64>
  return %y : tensor<i64>
}
"""
NAMES = ("step", "limit", "y")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    *inputs, output = (TensorSpec(name, "int64", ()) for name in NAMES)
    path: Path = tmp_path_factory.mktemp("loop") / "loop.so"
    return abqc.load(build(TEXT, inputs, [output], path), threads=1)


def count(model: Model, step: int, limit: int) -> int:
    return int(model.run([np.array(step), np.array(limit)])[0])


@contextmanager
def soon() -> Iterator[None]:
    """SIGINT for this process in a while."""
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()


def test_a_loop_without_end_is_interrupted(model: Model) -> None:
    assert count(model, 3, 10) == 12
    handler = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with soon(), pytest.raises(KeyboardInterrupt):
            count(model, 0, 1)
    assert signal.getsignal(signal.SIGINT) is handler
    assert count(model, 3, 10) == 12


def test_handlers_of_others_are_called(model: Model) -> None:
    called = []
    before = signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    try:
        with soon(), pytest.raises(KeyboardInterrupt, match="was interrupted"):
            count(model, 0, 1)
        assert called == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_between_runs_are_not_of_the_model(model: Model) -> None:
    with pytest.raises(KeyboardInterrupt):
        _thread.interrupt_main()
        for _ in range(10**6):
            pass
    assert count(model, 3, 10) == 12


def test_runs_of_other_threads_are_not_ended(model: Model) -> None:
    """SIGINT is for the main thread, whose run it ends."""
    results: list[int] = []
    worker = threading.Thread(target=lambda: results.append(count(model, 1, 10**9)))
    worker.start()
    with soon(), pytest.raises(KeyboardInterrupt):
        count(model, 0, 1)
    worker.join()
    assert results == [10**9]
