"""Fourier transforms of all kinds of lengths, windows, and mel matrices."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from front_end.support import compare, model_of

RNG = np.random.default_rng(5)

# With divisors, prime, a power of two, too long for one matrix, long with a large prime divisor.
LENGTHS = (1, 10, 97, 400, 1024, 1021, 4096, 2 * 1031)


def compiled(model: onnx.ModelProto, folder: Path) -> abqc.Model:
    source = folder / "model.onnx"
    onnx.save(model, source)
    return abqc.compile(source)


def pairs(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1).astype(np.float32)


def test_lengths(tmp_path: Path) -> None:
    """One model with an input for each length, real and complex, forwards and back."""
    inputs = ", ".join(f"float[b,{n},2] x{n}" for n in LENGTHS)
    outputs = ", ".join(f"float[b,{n},2] y{n}, float[b,m{n},2] r{n}" for n in LENGTHS)
    nodes = "\n".join(
        f"""y{n} = DFT <inverse = 1> (x{n}, "", axis)
        p{n} = Slice(x{n}, zero, one, last)  r{n} = DFT <onesided = 1> (p{n}, "", axis)"""
        for n in LENGTHS
    ).replace('""', "")
    text = f"""g ({inputs}) => ({outputs})
      <int64 axis = {{1}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] last = {{2}}> {{
        {nodes} }}"""
    model = compiled(model_of(text, 20), tmp_path)
    feeds = {f"x{n}": RNG.normal(size=(3, n, 2)).astype(np.float32) for n in LENGTHS}
    expected = []
    for n in LENGTHS:
        z = feeds[f"x{n}"][..., 0] + 1j * feeds[f"x{n}"][..., 1]
        expected += [pairs(np.fft.ifft(z, axis=1)), pairs(np.fft.rfft(z.real, axis=1))]
    compare(model, feeds, expected)


def test_lengths_of_the_run(tmp_path: Path) -> None:
    """The length of the signal, that of the transform, and the axis are the run's."""
    text = """g (float[b,n,1] x, int64 length, int64 axis, float[b,k,2] h)
        => (float[p,q,2] y, float[b,w,2] cut, float[b,v,1] z) <int64 one = {1}> {
          y = DFT(x, , axis)
          cut = DFT <onesided = 1> (x, length, one)
          z = DFT <onesided = 1, inverse = 1> (h, , one)
      }"""
    model = compiled(model_of(text, 20), tmp_path)
    for n, length, axis in ((9, 12, 1), (30, 7, 0), (5, 5, -3), (8, 3, -2)):
        x = RNG.normal(size=(4, n, 1)).astype(np.float32)
        h = RNG.normal(size=(4, 6, 2)).astype(np.float32)
        signal = x[..., 0]
        expected = [
            pairs(np.fft.fft(signal, axis=axis if axis >= 0 else axis + 3)),
            pairs(np.fft.rfft(signal, n=length, axis=1)),
            np.fft.irfft(h[..., 0] + 1j * h[..., 1], axis=1)[..., None].astype(np.float32),
        ]
        feeds = {"x": x, "length": np.array(length), "axis": np.array(axis), "h": h}
        compare(model, feeds, expected)
    with pytest.raises(abqc.AbqcError, match="axis"):
        model.run({**feeds, "axis": np.array(2)})


@pytest.mark.parametrize("frame", [400, 64])
def test_frames_of_a_signal(frame: int, tmp_path: Path) -> None:
    text = f"""g (float[b,n,1] x, float[{frame}] window) => (float[b,f,k,2] y, float[b,f,k,2] z)
        <int64 step = {{{frame // 4}}}, int64 length = {{{frame}}}> {{
          y = STFT(x, step, window)  z = STFT <onesided = 0> (x, step, , length)
      }}"""
    model = compiled(model_of(text, 17), tmp_path)
    for n in (frame, 5 * frame + 3):
        x = RNG.normal(size=(2, n, 1)).astype(np.float32)
        window = np.hanning(frame).astype(np.float32)
        frames = np.stack([x[:, i : i + frame, 0] for i in range(0, n - frame + 1, frame // 4)], 1)
        expected = [pairs(np.fft.rfft(frames * window)), pairs(np.fft.fft(frames))]
        compare(model, {"x": x, "window": window}, expected, 2e-4)
