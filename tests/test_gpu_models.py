"""Whole models compiled for GPUs and run in the PTX machine, against the same model on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import abqc
import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.compiler.driver import compile_file
from abqc.compiler.evaluation.metrics import relative_error
from abqc.errors import AbqcError, DeviceError, InputError
from abqc.runtime.artifact import manifest_of
from abqc.runtime.model import Model
from abqc.runtime.ptx.driver import PtxDriver
from decoder import DecoderSizes, decoder, feeds
from fake_gpu import GpuTensor

Feeds = dict[str, np.ndarray]

# Of the output's range (docs/numerics.md): activations in f32, in f16. A code that differs by one
# step, which 0.1 % of those may, is a 255th of its row's range.
SAME = 1e-3
ONE_STEP = 4e-3
HALF = 1e-2


class Pair:
    """One model for the CPU, and for a GPU in the PTX machine, whose `launches` are noted."""

    def __init__(self, source: Path, folder: Path, quant: str, target: str = "sm_90a") -> None:
        self.cpu = abqc.compile(source, quant=quant, output=folder / "cpu.so")
        library = compile_file(source, quant=quant, target=target, output=folder / "gpu.so")
        self.launches: list[str] = []
        capability = int(target[3]), int(target[4])
        driver = PtxDriver(capability, progress=lambda name, _: self.launches.append(name))
        self.gpu: Model = abqc.load(library, device=driver)

    def error(self, inputs: Feeds) -> float:
        """The largest difference of an output, relative to its range."""
        return max(
            relative_error(expected, np.asarray(actual))
            for expected, actual in zip(self.cpu.run(inputs), self.gpu.run(inputs), strict=True)
        )

    def count(self, prefix: str) -> int:
        """Launches of kernels whose names begin so."""
        return sum(name.startswith(prefix) for name in self.launches)


@pytest.mark.parametrize(
    ("quant", "limit"),
    [
        ("none", SAME),
        ("w8a8", SAME),
        ("w2a2", ONE_STEP),
        ("w2v a8", SAME),
        pytest.param("w3v a16", HALF, marks=pytest.mark.slow),
        pytest.param("w1a4", ONE_STEP, marks=pytest.mark.slow),
        pytest.param("w2*a8", ONE_STEP, marks=pytest.mark.slow),
        ("w3a16 rotate", HALF),
        pytest.param("w3a16:bf16", HALF, marks=pytest.mark.slow),
    ],
)
def test_a_network_of_matmuls(
    real_model: Callable[[str], Path],
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    quant: str,
    limit: float,
) -> None:
    pair = Pair(real_model("digits_mlp"), tmp_path, quant)
    for rows in (1, 3, 40):
        assert pair.error({"X": digits[0][:rows].astype(np.float32)}) <= limit


@pytest.mark.parametrize("quant", [pytest.param("none", marks=pytest.mark.slow), "w4a8"])
def test_a_network_of_convolutions(
    real_model: Callable[[str], Path],
    digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    quant: str,
) -> None:
    pair = Pair(real_model("digits_cnn"), tmp_path, quant, "sm_80")
    images = digits[0][:5].reshape(-1, 1, 8, 8).astype(np.float32)
    assert pair.error({"image": images}) <= ONE_STEP


def sentences() -> Feeds:
    ids = np.random.default_rng(0).integers(1000, 30000, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_an_encoder_layer(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    """minilm-l3's first, with its embeddings."""
    source = real_model("minilm-l3")
    norms = [n for n in onnx.load(source).graph.node if "layer.0/output/LayerNorm" in n.name]
    layer = tmp_path / "layer.onnx"
    onnx.utils.extract_model(source, layer, ["input_ids", "attention_mask"], [norms[-1].output[0]])
    pair = Pair(layer, tmp_path, "w8a8")
    expected, actual = (model.run(sentences())[0] for model in (pair.cpu, pair.gpu))
    by_token = [
        relative_error(*rows) for rows in zip(expected[0], np.asarray(actual)[0], strict=True)
    ]
    # A few tokens have a code of activations that attention's last bits made another one.
    assert np.median(by_token) <= 1e-5 and max(by_token) <= ONE_STEP
    # Norms pack for the products that follow; attention's result and GELU's are packed apart.
    assert pair.count("norm_") == 3 and pair.count("pack_") == 2


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "limit"), [("none", 1e-5), ("w4a8", 2e-2), ("w2a4", 0.1)])
def test_a_whole_encoder(
    real_model: Callable[[str], Path], tmp_path: Path, quant: str, limit: float
) -> None:
    """minilm-l3. A code that differs by one step changes those of the layers that follow."""
    assert Pair(real_model("minilm-l3"), tmp_path, quant).error(sentences()) <= limit


@pytest.mark.parametrize(
    ("quant", "limit"), [("w4a8", ONE_STEP), pytest.param("w2a16", HALF, marks=pytest.mark.slow)]
)
def test_a_decoder_layer(tmp_path: Path, quant: str, limit: float) -> None:
    """smollm2's sizes: a prompt, then single steps with the cache."""
    onnx.save(decoder(), tmp_path / "decoder.onnx")
    pair = Pair(tmp_path / "decoder.onnx", tmp_path, quant)
    for batch, rows, past in ((1, 6, 0), (2, 1, 5), (1, 1, 11)):
        pair.launches.clear()
        assert pair.error(feeds(batch, rows, past)) <= limit
        assert pair.count("norm_") == 2 and pair.count("attention_") == 1
        if quant == "w4a8":  # the gate's; attention packs one or two rows itself
            assert pair.count("pack_") == 1 + (batch * rows > 2)


def test_decoding_steps_are_single_launches(tmp_path: Path) -> None:
    """With a cache that grows in place, to the bit as launched kernel by kernel and checked."""
    onnx.save(decoder(), tmp_path / "decoder.onnx")
    library = compile_file(
        tmp_path / "decoder.onnx", quant="w4a8", target="sm_90a", output=tmp_path / "model.so"
    )
    calls: Counter[str] = Counter()
    driver = PtxDriver(
        (9, 0), separate_buffers=False, intercept=lambda name, _: calls.update([name])
    )
    model, checked = abqc.load(library, device=driver), abqc.load(library, device="ptx-vm")
    first = feeds(1, 1, 3)
    caches = {name[5:]: np.zeros((1, 3, 16, 64), np.float32) for name in first if "past" in name}
    for name, cache in caches.items():
        cache[:, :, :3] = first[f"past_{name}"]
    on_gpu = {name: GpuTensor(driver.machine, cache) for name, cache in caches.items()}
    for past in range(3, 8):
        old, new = np.s_[:, :, :past], np.s_[:, :, : past + 1]
        inputs = feeds(1, 1, past)
        pasts = {f"past_{name}": cache.numpy()[old] for name, cache in on_gpu.items()}
        expected = checked.run(inputs | pasts)
        calls.clear()
        pasts = {f"past_{name}": cache.slice(old) for name, cache in on_gpu.items()}
        grown = {f"present_{name}": cache.slice(new) for name, cache in on_gpu.items()}
        outputs = model.run(inputs | pasts, outputs=grown, device="cpu")
        print(calls)
        for got, wanted in zip(outputs, expected, strict=True):
            got = got.numpy() if isinstance(got, GpuTensor) else got
            np.testing.assert_array_equal(got, wanted)
        if past > 4:
            assert calls["cuGraphLaunch"] == 1 and not calls["cuLaunchKernel"]
            assert 0 < calls["cuGraphExecKernelNodeSetParams"] < 15


def test_a_cache_that_kernels_cannot_read_is_refused(tmp_path: Path) -> None:
    """They read 16 bytes at a time: an odd view would end all work on the GPU."""
    onnx.save(decoder(sizes=DecoderSizes(64, 4, 2, 32, 64)), tmp_path / "decoder.onnx")
    library = compile_file(tmp_path / "decoder.onnx", target="sm_80", output=tmp_path / "m.so")
    driver = PtxDriver((8, 0), 1 << 26)
    model = abqc.load(library, device=driver)
    rng = np.random.default_rng(0)
    inputs: Feeds = {
        "x": rng.standard_normal((1, 1, 64), dtype=np.float32),
        "position_ids": np.array([[3]]),
        "bias": np.zeros((1, 1, 1, 4), np.float32),
    }

    def step(width: int, column: int) -> np.ndarray:
        """With caches that are some columns of `width`."""
        past, grown = {}, {}
        for kind in "key", "value":
            whole = np.zeros((1, 2, 9, width), np.float32)
            columns = slice(column, column + 32)
            whole[:, :, :3, columns] = np.random.default_rng(1).standard_normal((1, 2, 3, 32))
            memory = GpuTensor(driver.machine, whole)
            past[f"past_0_{kind}"] = memory.slice(np.s_[:, :, :3, columns])
            grown[f"present_0_{kind}"] = memory.slice(np.s_[:, :, :4, columns])
        return model.run(inputs | past, outputs=grown, device="cpu")[0]

    np.testing.assert_array_equal(step(68, 8), step(32, 0))
    for width, column in (68, 1), (66, 8), (68, 2):
        with pytest.raises(InputError, match=r"a cache and its rows must start at multiples of 16"):
            step(width, column)


def test_attentions_of_other_sizes_share_a_mask(tmp_path: Path) -> None:
    """As those of an encoder and of cross attention: the first ones may have too few queries for
    kernels that ask which keys the mask's rows see; of a mask that is one number the others have
    more keys."""
    nodes, initializers = (
        [],
        {"heads": np.array([0, 0, 2, 16]), "scale": np.array(0.25, np.float32)},
    )
    rows = {"a": "M", "b": "N", "k": "T", "l": "L"}
    sharing = (("a", "k", "mask"), ("b", "k", "mask"), ("l", "k", "one"), ("b", "l", "one"))
    outputs = []
    for i, (q, k, mask) in enumerate(sharing):
        for x, name, perm in (q, "q", [0, 2, 1, 3]), (k, "k", [0, 2, 3, 1]), (k, "v", [0, 2, 1, 3]):
            nodes.append(models.node("Reshape", f"{x} heads", f"{name}4{i}"))
            nodes.append(models.node("Transpose", f"{name}4{i}", f"{name}t{i}", perm=perm))
        nodes += [
            models.node("MatMul", f"qt{i} kt{i}", f"s{i}"),
            models.node("Mul", f"s{i} scale", f"c{i}"),
            models.node("Add", f"c{i} {mask}", f"m{i}"),
            models.node("Softmax", f"m{i}", f"p{i}", axis=-1),
            models.node("MatMul", f"p{i} vt{i}", f"y{i}"),
        ]
        outputs.append((f"y{i}", "float32", ("B", 2, rows[q], 16)))
    inputs = [(name, "float32", ("B", size, 32)) for name, size in rows.items()]
    inputs += [(mask, "float32", ("B", 1, 1, n)) for mask, n in (("mask", "T"), ("one", 1))]
    proto = models.model(nodes, inputs, outputs, initializers)
    pair = Pair(models.save(proto, tmp_path), tmp_path, "none", "sm_80")
    rng = np.random.default_rng(0)
    hidden = np.float32([0, 0, 0, -1e9, -1e9])[None, None, None]
    for m, n in ((5, 12), (12, 9)):
        sizes = {"a": m, "b": n, "k": 5, "l": 11}
        tensors = {x: rng.standard_normal((1, size, 32), np.float32) for x, size in sizes.items()}
        assert pair.error(tensors | {"mask": hidden, "one": hidden[..., :1]}) <= SAME
    assert pair.count("attention_limits") == 2 * 3


def test_a_head_tied_to_its_embedding_is_stored_once(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    nodes = [
        models.node("Gather", "table ids", "x"),
        models.node("Transpose", "table", "columns", perm=[1, 0]),
        models.node("MatMul", "x columns", "y"),
    ]
    proto = models.model(
        nodes, [("ids", "int64", ("B", "S"))], [("y", "float32", ("B", "S", 300))], {"table": table}
    )
    pair = Pair(models.save(proto, tmp_path), tmp_path, "w8a8")
    assert pair.error({"ids": np.array([[5, 299, 0], [7, 7, 150]])}) <= SAME
    (gather,) = pair.gpu.manifest["tables"]
    assert gather["bytes"] == 0


def test_one_artifact_for_several_gpus(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    library = compile_file(
        real_model("digits_mlp"), quant="w8a8", target="cuda", output=tmp_path / "model.so"
    )
    x = np.random.default_rng(0).random((3, 64)).astype(np.float32)
    for code in manifest_of(library)["gpu"] if find_tool("ptxas") else []:
        assert all(kernel["spilled"] == 0 for kernel in code["kernels"].values()), code["target"]
    outputs = [
        abqc.load(library, device=f"ptx-vm:{name}").run({"X": x})[0]
        for name in ("sm_80", "sm_89", "sm_90a", "sm_120a")
    ]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_compiling_needs_no_gpu_but_loading_does(
    real_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.so"
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="was written, but cannot be loaded here"):
        abqc.compile(real_model("digits_mlp"), target="sm_90a", output=output)
    assert output.exists()


@pytest.mark.parametrize("target", ["sm_42", "sm_80,abacus", ""])
def test_unknown_targets_are_refused(
    real_model: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    with pytest.raises(AbqcError, match="there is no target") as caught:
        compile_file(real_model("digits_mlp"), target=target, output=tmp_path / "model.so")
    assert "sm_90a" in (caught.value.hint or "")
    assert not (tmp_path / "model.so").exists()
