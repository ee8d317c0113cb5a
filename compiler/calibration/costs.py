"""What a library takes: bytes, by building it, and the seconds of its products, by the cost model.

Both begin with the products as `pack-layouts` would find them: a formula of what layouts and
strategies do would have to be kept true beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.build import build_with, resolve_target
from abqc.compiler.job import Request
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.onnx_import.result import TensorSpec
from abqc.compiler.pipeline import stages
from abqc.compiler.recipe import Recipe
from abqc.dialects import abq
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.dialects.matmul_spec import MatmulSpec
from abqc.dialects.mlir import ir
from abqc.dialects.trellis import Panels
from abqc.errors import InputError, RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline, walk
from abqc.passes.pack_layouts import spec_of

from .budget import Budget, Shape

OnPass = Callable[[str], None]


@dataclass(frozen=True)
class Product:
    """An `abq.matmul` of the model: its node, and its rows in a run (None: only a run knows)."""

    node: str
    spec: MatmulSpec
    rows: int | None


class Costs:
    """What products and libraries of a request take. `recipe` says all but the chosen widths."""

    def __init__(self, request: Request, recipe: Recipe, on_pass: OnPass | None) -> None:
        self.request = request
        self.recipe = recipe
        self.target = resolve_target(request.target, request.cpu)
        self._on_pass = on_pass or (lambda name: None)
        self._packed: dict[MatmulSpec, int | None] = {}
        self._folders = 0

    def products(self, shapes: Mapping[str, Shape]) -> list[Product]:
        """The products of the model as the recipe has them, for inputs of these shapes."""
        return self._quantized(shapes)[0]

    def products_of_rows(self, budget: Budget) -> list[Product]:
        """The products for the budget's shapes, which must say how many rows each has.

        Raises InputError where they do not.
        """
        products, inputs = self._quantized(budget.shapes)
        unknown = [product for product in products if product.rows is None]
        if not unknown:
            return products
        first = inputs[0]
        example = f"{first.name}={'x'.join('1' for _ in first.shape)}"
        listed = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise InputError(
            f"a budget of {budget} needs the shapes of inputs: they decide how many rows "
            f"'{unknown[0].node}' multiplies",
            hint=f"write them as in {budget.text.partition('@')[0]}@{example}; the inputs are "
            f"{listed}",
        )

    def _quantized(self, shapes: Mapping[str, Shape]) -> tuple[list[Product], list[TensorSpec]]:
        request, work = self.request, self._folder()
        imported = import_model(
            request.model, shapes=request.shapes | dict(shapes), work_dir=work, keep_codes=True
        )
        unit = Unit(
            store=imported.store,
            recipe=_measurable(self.recipe),
            target=self.target,
            node_kinds={node.name: node.kind for node in imported.nodes},
            on_pass=self._on_pass,
            inputs=imported.inputs,
            outputs=imported.outputs,
        )
        passes = stages(self.target.objects.on_device)
        quantized = passes["quantized"]
        before = quantized[: quantized.index("pack-layouts")]
        before = tuple(name for name in before if name != "direct-code-conv")  # all are matmuls
        module = imported.module.operation
        run_pipeline(module, (*passes["simplified"], *before), unit)
        with imported.module.context:
            return [_product(op) for op in walk(module, "abq.matmul")], imported.inputs

    def bytes_of(self, spec: MatmulSpec) -> int | None:
        """The packed weight's; None where no strategy can do it."""
        if spec not in self._packed:
            choice = self._choice(spec)
            blob = None if choice is None else choice.strategy.pack_weight(spec, _zeros(spec))
            self._packed[spec] = None if blob is None else blob.nbytes
        return self._packed[spec]

    def library_bytes(self, recipe: Recipe, given: Mapping[str, np.ndarray]) -> int:
        """The bytes of the library that the recipe makes, whatever the codes of its weights are;
        `given` is what calibration adds to the weight store besides codes."""
        work = self._folder()
        output = work / "model.so"
        request = replace(self.request, output=output, work=work, calib=None, budget=None)
        try:
            build_with(
                replace(request, dump_dir=None),
                _measurable(recipe),
                lambda step, done, of: None,
                self._on_pass,
                given,
            )
            return output.stat().st_size
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def seconds_of(self, product: Product, working_set: int) -> float | None:
        """What the cost model says of a product; None where no strategy can do it."""
        assert product.rows is not None
        choice = self._choice(product.spec, product.node, working_set)
        if choice is None:
            return None
        seconds: float = self.target.seconds(choice, product.rows, working_set=working_set)
        return seconds

    def _choice(self, spec: MatmulSpec, node: str = "", working_set: int = 0) -> Any:
        try:
            return self.target.choose([spec], nodes=[node], working_set=working_set)[0]
        except RecipeError:
            return None

    def _folder(self) -> Path:
        self._folders += 1
        folder = self.request.work / f"cost{self._folders}"
        folder.mkdir()
        return folder


def in_format(spec: MatmulSpec, scheme: Scheme) -> MatmulSpec:
    """The same product with its weight in another format."""
    return replace(spec, weight=scheme, scale_bits=16)


def code_bytes(products: list[Product]) -> int:
    """Of all weights, codes alone: what passes between two runs of a product."""
    return sum(p.spec.n * p.spec.k * p.spec.weight_bits // 8 for p in products)


def _product(op: ir.Operation) -> Product:
    sizes = abq.shape(op.results[0])[:-1]
    rows = None if any(size < 0 for size in sizes) else prod(sizes)
    return Product(ir.StringAttr(op.attributes["node"]).value, spec_of(op), rows)


def _measurable(recipe: Recipe) -> Recipe:
    """A recipe that needs no data and takes as many bytes: activations whose one scale only data
    give have one for each row."""
    rules = []
    for rule in recipe.rules:
        activation = rule.activation
        if activation is not None and activation.granularity == "tensor":
            rule = replace(rule, activation=replace(activation, granularity="token"))
        rules.append(rule)
    return Recipe(tuple(rules), recipe.text)


def _zeros(spec: MatmulSpec) -> QuantizedTensor | np.ndarray:
    """A weight of the spec; the sizes of layouts do not depend on what it holds."""
    scheme = spec.weight
    if scheme is None:
        return np.zeros((spec.n, spec.k), np.float32)
    groups = spec.n, scheme.n_groups(spec.k)
    zero = None if scheme.symmetric else np.zeros(groups, np.uint8)
    padded = Panels(spec.n).padded_n, spec.k
    return QuantizedTensor(
        np.zeros((spec.n, spec.k), scheme.format.dtype),
        np.ones(groups, np.float32 if spec.scale_bits == 32 else scheme.scale_dtype),
        zero,
        scheme,
        symbols=np.zeros(padded, np.uint8) if scheme.format.kind == "trellis" else None,
    )
