"""How many launches a layer of a decoder is in a decoding step, counted in the PTX machine."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.driver import compile_file
from abqc.runtime.ptx.driver import PtxDriver
from decoder import DecoderSizes, decoder, feeds
from fake_gpu import GpuTensor

SIZES = DecoderSizes(64, 4, 2, 32, 128)
ROOM, PAST = 16, 3


@pytest.mark.parametrize(
    ("quant", "target", "count"), [("w4a8", "sm_90a", 9), ("w4a16", "sm_90a", 8)]
)
def test_launches_of_a_layer(tmp_path: Path, quant: str, target: str, count: int) -> None:
    """From its first norm to the product whose result the next one's norm would add."""
    onnx.save(decoder(1, SIZES), tmp_path / "decoder.onnx")
    library = compile_file(
        tmp_path / "decoder.onnx", quant=quant, target=target, output=tmp_path / "model.so"
    )
    launches: list[str] = []
    driver = PtxDriver(
        (int(target[3]), 0), separate_buffers=False, progress=lambda name, _: launches.append(name)
    )
    model = abqc.load(library, device=driver)
    inputs = feeds(1, 1, PAST, 1, SIZES)
    empty = np.zeros((1, SIZES.cache_heads, ROOM, SIZES.head), np.float32)
    past, grown = {}, {}
    for name in [name for name in inputs if name.startswith("past_")]:
        cache = GpuTensor(driver.machine, empty)
        past[name] = cache.slice(np.s_[:, :, :PAST])
        grown[name.replace("past", "present")] = cache.slice(np.s_[:, :, : PAST + 1])
    model.run(inputs | past, outputs=grown, device="cpu")
    before = next(at for at, name in enumerate(launches) if name.startswith("norm_"))
    assert launches[-1].startswith("loops_"), "the last residual is added"
    assert len(launches[before:-1]) == count, launches
