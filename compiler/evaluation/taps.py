"""The noise of rounding activations, layer by layer: what products read, before and after.

The float model is built in another process as the recipe simplifies and rotates it, with the
values that quantized products read as its outputs; it runs once, and what comes out is rounded by
the reference (`formats.quantize_activation`). So every layer is looked at alone: its input is the
float model's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from abqc.compiler.evaluation.report import Layer
from abqc.compiler.evaluation.samples import MASK
from abqc.compiler.fork_client import Server
from abqc.compiler.job import Request
from abqc.compiler.job import run as run_job
from abqc.dialects import hadamard
from abqc.dialects.formats import Scheme, parse_scheme, quantize_activation
from abqc.dialects.weight_noise import weight_noise
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = NDArray[np.float32]
Report = Callable[[str, int, int], None]

SERVER = Server("abqc.compiler.evaluation.taps:serve")


@dataclass(frozen=True)
class _Product:
    """A product that rounds what it reads: the name of the value, its scheme, its rotation."""

    node: str
    reads: str
    scheme: Scheme
    block: int


def activation_layers(
    onnx: Path, recipe: str, calibrated: bool, feeds: Mapping[str, Array], report: Report
) -> list[Layer]:
    """The noise of every matrix product's rounded activation, for one run on `feeds`.

    `recipe` and `calibrated` are as the library was compiled; convolutions are left out. Raises
    AbqcError as a compile does.
    """
    work = Path(tempfile.mkdtemp(prefix="abqc-"))
    try:
        samples = work / "samples.npz"
        np.savez(samples, **cast(Any, feeds))
        request = Request(
            model=onnx,
            quant=recipe,
            target="cpu",
            output=work / "taps.so",
            work=work,
            calib=samples if calibrated else None,
            shapes={},
        )
        (answer,) = run_job(request, report, SERVER)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [Layer(**layer) for layer in json.loads(answer)]


def serve(request: Request, say: Callable[[dict[str, Any]], None]) -> None:
    """In the other process: the layers as JSON."""
    from abqc.compiler.worker import answer

    answer(request, say, _measure)


def _measure(request: Request, report: Report, on_pass: Callable[[str], None]) -> list[str]:
    """The one note: the layers as JSON. `samples.npz` lies in the request's work folder."""
    from abqc.codegen.targets.cpu import CpuTarget
    from abqc.compiler.calibration.runs import token_rows
    from abqc.compiler.onnx_import.importer import import_model
    from abqc.compiler.pipeline import stages
    from abqc.compiler.read_recipe import parse_recipe
    from abqc.passes.infrastructure import Unit, run_pipeline
    from abqc.runtime.caches import encode_caches

    recipe = parse_recipe(request.quant)
    if request.calib is not None:
        recipe = recipe.with_calibration()
    report("import", 0, 1)
    imported = import_model(request.model, shapes={}, work_dir=request.work, keep_codes=True)
    unit = Unit(
        store=imported.store,
        recipe=recipe,
        target=CpuTarget(),
        node_kinds={node.name: node.kind for node in imported.nodes},
        on_pass=on_pass,
        inputs=imported.inputs,
        outputs=imported.outputs,
    )
    run_pipeline(imported.module.operation, stages(on_device=False)["simplified"], unit)
    with np.load(request.work / "samples.npz") as data:
        feeds = encode_caches({"caches": unit.caches}, dict(data))
    report("taps", 0, 1)
    products, values = _run_taps(imported.module, unit, feeds, request.work)
    report("noise of activations", 0, 1)
    mask = feeds.get(MASK)
    layers = [_layer(product, token_rows(values[product.reads], mask)) for product in products]
    return [json.dumps(layers)]


def _run_taps(
    module: Any, unit: Any, feeds: Mapping[str, Array], work: Path
) -> tuple[list[_Product], dict[str, Array]]:
    """The products that round activations, and what they read when the model runs on `feeds`."""
    from abqc.compiler.calibration.dataflow import DataFlow
    from abqc.compiler.calibration.runs import compile_segment
    from abqc.compiler.calibration.segments import extract, name_of
    from abqc.compiler.recipe import FLOAT
    from abqc.dialects import abq
    from abqc.dialects.mlir import ir
    from abqc.passes.quantization.product_encodings import (
        float_source,
        matmul_activation,
        matmul_encoding,
        table_schemes,
    )

    flow = DataFlow(module.operation)
    tables = table_schemes(module.operation, unit)
    products, wanted = [], {}
    for op in flow.operations:
        if op.name != "abq.matmul" or abq.code_format(op.opview.w) is not None:
            continue
        node = ir.StringAttr(op.attributes["node"]).value
        encoding = matmul_encoding(op, tables, unit)
        scheme = matmul_activation(op, encoding, unit) if encoding is not None else None
        if encoding is None or scheme is None:
            continue
        value = float_source(op.opview.x)
        id_ = flow.id_of(value)
        name = name_of(value, id_, unit.inputs)
        if id_ is not None:
            wanted[name] = id_
        products.append(_Product(node, name, scheme, encoding.hadamard_block))
    values = dict(feeds)
    if wanted:
        part = extract(module.operation, unit.inputs, [], list(wanted.values()))
        with compile_segment(part, FLOAT, unit.store, work) as model:
            given = {spec.name: feeds[spec.name] for spec in model.inputs}
            values |= dict(zip(wanted, model.run(given), strict=True))
    return products, values


def _layer(product: _Product, x: F32) -> dict[str, Any]:
    rotated = hadamard.transform(x, product.block) if product.block else x
    codes, scale, zero = quantize_activation(rotated, product.scheme)
    zeros = None if product.scheme.symmetric else zero[:, None]
    rounded = product.scheme.format.decode(codes, scale[:, None], zeros)
    noise = weight_noise(rotated, rounded).as_manifest()
    text = product.scheme.text + (f" rotated by {product.block}" if product.block else "")
    return {"node": product.node, "format": text} | noise


def rounds_activations(manifest: Mapping[str, Any]) -> bool:
    """Whether any matrix product of an artifact rounds what it reads."""
    return any(op["kind"] == "matmul" and _is_scheme(op["activation"]) for op in manifest["ops"])


def _is_scheme(text: str) -> bool:
    try:
        return parse_scheme(text).role == "a"
    except ValueError:
        return False
