"""Weights of 2, 4 and 8 bits in blocks, as onnxruntime's quantizers write them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.compiler.onnx_import.importer import import_model
from abqc.errors import ModelError
from front_end.oracle import compiled, expected, outputs
from onnx import NodeProto
from onnx_models import node

MS = {"domain": "com.microsoft"}
F32 = np.float32


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis into bytes, the first one in the low bits."""
    per_byte = 8 // bits
    rows = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_byte)])
    rows = rows.reshape(*rows.shape[:-1], -1, per_byte).astype(np.uint8)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(rows << shifts, axis=-1).astype(np.uint8)


class Product:
    """One MatMulNBits with random codes; `w` is what they stand for."""

    def __init__(
        self,
        name: str,
        bits: int,
        block: int,
        k: int,
        n: int = 9,
        zeros: str = "none",
        g_idx: str = "none",
        bias: bool = False,
    ) -> None:
        rng = np.random.default_rng(len(name) + 16 * bits + k)
        blocks = math.ceil(k / block)
        codes = rng.integers(0, 1 << bits, (n, blocks * block))
        scale = rng.uniform(-0.02, 0.05, (n, blocks)).astype(F32)
        zero = np.full((n, blocks), 1 << (bits - 1), F32)
        self.constants = {f"{name}_w": pack(codes.reshape(n, blocks, block), bits)}
        self.constants[f"{name}_scale"] = scale
        names = {"zero": "_", "g_idx": "_", "bias": "_"}
        if zeros == "packed":
            zero = rng.integers(0, 1 << bits, (n, blocks)).astype(F32)
            self._add(names, name, "zero", pack(zero.astype(np.uint8), bits))
        if zeros in ("float", "whole"):
            zero = rng.uniform(0, 1 << bits, (n, blocks)).astype(F32)
            zero = np.floor(zero) if zeros == "whole" else zero
            self._add(names, name, "zero", zero)
        groups = np.arange(k) // block
        if g_idx != "none":
            if g_idx == "uneven":
                groups = rng.integers(0, blocks, k)
            rng.shuffle(groups)
            self._add(names, name, "g_idx", groups.astype(np.int32))
        if bias:
            self._add(names, name, "bias", rng.standard_normal(n).astype(F32))
        self.w = (codes[:, :k] - zero[:, groups]) * scale[:, groups]
        self.k, self.name = k, name
        optional = f"{names['zero']} {names['g_idx']} {names['bias']}"
        self.node: NodeProto = node(
            "MatMulNBits", f"{name}_x {name}_w {name}_scale {optional}", name, name,
            K=k, N=n, bits=bits, block_size=block, **MS,
        )  # fmt: skip

    def _add(self, names: dict[str, str], name: str, part: str, array: np.ndarray) -> None:
        names[part] = f"{name}_{part}"
        self.constants[names[part]] = array

    def expected(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64) @ self.w.T + self.constants.get(f"{self.name}_bias", 0)


PRODUCTS = (
    Product("four", 4, 32, 64),
    Product("four_packed", 4, 16, 48, zeros="packed"),
    Product("four_short", 4, 32, 72, zeros="packed", bias=True),
    Product("four_small", 4, 64, 24, zeros="packed"),
    Product("two", 2, 32, 96, zeros="packed"),
    Product("eight", 8, 32, 64),
    Product("eight_packed", 8, 128, 200, zeros="packed", bias=True),
    Product("four_float", 4, 16, 48, zeros="float"),
    Product("four_whole", 4, 16, 48, zeros="whole"),
    Product("four_moved", 4, 16, 40, zeros="packed", g_idx="even"),
    Product("four_uneven", 4, 16, 48, zeros="packed", g_idx="uneven"),
)


def test_matmul_nbits_is_the_product_with_what_the_codes_stand_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {key: array for p in PRODUCTS for key, array in p.constants.items()}
    proto = models.model(
        [p.node for p in PRODUCTS],
        [(f"{p.name}_x", F32, ["batch", "rows", p.k]) for p in PRODUCTS],
        [(p.name, F32, [None] * 3) for p in PRODUCTS],
        constants,
        domains=["com.microsoft"],
    )
    model = compiled(proto, tmp_path)
    weights = {entry["node"]: entry["weight"] for entry in model.manifest["ops"]}
    assert weights["four"] == "w4:g32:sym" and weights["two"] == "w2:g32:asym"
    assert weights["four_short"] == "w4:g32:asym" and weights["eight"] == "w8:g32:sym"
    assert weights["four_whole"] == "w4:g16:asym" and weights["four_moved"] == "w4:g16:asym"
    for batch, rows in ((1, 1), (2, 5), (1, 0)):
        feeds = {
            f"{p.name}_x": rng.standard_normal((batch, rows, p.k)).astype(F32) for p in PRODUCTS
        }
        for p, got in zip(PRODUCTS, outputs(model, feeds), strict=True):
            wanted = p.expected(feeds[f"{p.name}_x"])
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4, err_msg=p.name)


def test_a_weight_of_two_nodes_is_stored_once(tmp_path: Path) -> None:
    product = Product("shared", 4, 32, 64, n=33, zeros="packed")
    other = onnx.NodeProto()
    other.CopyFrom(product.node)
    other.name, other.output[0] = "other", "other"
    proto = models.model(
        [product.node, other],
        [("shared_x", F32, ["rows", 64])],
        [("shared", F32, [None, None]), ("other", F32, [None, None])],
        product.constants,
        domains=["com.microsoft"],
    )
    result = import_model(models.save(proto, tmp_path), work_dir=tmp_path, keep_codes=True)
    assert len({info.weight for info in result.nodes}) == 1 and len(result.store) == 1


def test_a_weight_that_does_not_fit_is_an_error_with_the_nodes_name(tmp_path: Path) -> None:
    product = Product("broken", 4, 32, 64)
    product.constants["broken_scale"] = product.constants["broken_scale"][:, :1]
    proto = models.model(
        [product.node],
        [("broken_x", F32, ["rows", 64])],
        [("broken", F32, [None, None])],
        product.constants,
        domains=["com.microsoft"],
    )
    with pytest.raises(ModelError, match="9 scales for 9 x 2 blocks") as error:
        compiled(proto, tmp_path)
    assert error.value.node == "broken"


def test_gather_block_quantized(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, columns, block = 50, 64, 16
    constants, nodes = {}, []
    for bits in (2, 4, 8):
        for zeros in ("", "zeros"):
            name = f"{bits}{zeros}"
            codes = rng.integers(0, 1 << bits, (rows, columns))
            constants[f"table{name}"] = pack(codes, bits)
            scale = rng.uniform(0.01, 0.1, (rows, columns // block)).astype(F32)
            constants[f"scale{name}"] = scale
            inputs = f"table{name} ids scale{name}"
            if zeros:
                zero = rng.integers(0, 1 << bits, (rows, columns // block))
                constants[f"zero{name}"] = pack(zero, bits)
                inputs += f" zero{name}"
            nodes.append(
                node(
                    "GatherBlockQuantized", inputs, f"y{name}", name, bits=bits, block_size=block,
                    gather_axis=0, quantize_axis=1, **MS,
                )
            )  # fmt: skip
    proto = models.model(
        nodes,
        [("ids", np.int64, ["batch", "length"])],
        [(n.output[0], F32, [None, None, columns]) for n in nodes],
        constants,
        domains=["com.microsoft"],
    )
    model = compiled(proto, tmp_path)
    for table in model.manifest["tables"]:
        assert table["weight"].startswith(f"w{table['node'][0]}:g{block}")
    feeds = {"ids": rng.integers(-rows, rows, (3, 7))}
    feeds["ids"][1, 2:4] = rows, -rows - 1  # out of range: zeros
    for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("quant_type", [0, 1])
def test_matmul_bnb4(quant_type: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(quant_type)
    n, k, block = 12, 80, 32
    constants = {
        "w": rng.integers(0, 256, n * k // 2).astype(np.uint8),
        "largest": rng.uniform(0.1, 1, n * k // block).astype(F32),
    }
    proto = models.model(
        [node("MatMulBnb4", "x w largest", "y", N=n, K=k, block_size=block, quant_type=quant_type,
              **MS)],
        [("x", F32, ["rows", k])],
        [("y", F32, [None, n])],
        constants,
        domains=["com.microsoft"],
    )  # fmt: skip
    feeds = {"x": rng.standard_normal((5, k)).astype(F32)}
    (got,) = outputs(compiled(proto, tmp_path), feeds)
    (wanted,) = expected(proto, feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
