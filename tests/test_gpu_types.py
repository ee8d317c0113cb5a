"""Functions of 16-bit floats run on GPUs, those of float64 are refused with the node's name."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.errors import ModelError
from abqc.runtime.tensor_spec import TensorSpec
from ir_model import build

TEXT = """
#id = affine_map<(i) -> (i)>
func.func @main(%x: tensor<?x{t}>) -> tensor<?x{t}> {{
  %y = linalg.generic {{indexing_maps = [#id, #id], iterator_types = ["parallel"]}}
      ins(%x : tensor<?x{t}>) outs(%x : tensor<?x{t}>) {{
  ^bb0(%a: {t}, %o: {t}):
    %r = math.{function} %a : {t} loc("Node_7")
    linalg.yield %r : {t}
  }} -> tensor<?x{t}>
  return %y : tensor<?x{t}>
}}
"""


def compiled(function: str, element: str, dtype: str, path: Path) -> Path:
    specs = [TensorSpec(name, dtype, ("n",)) for name in ("x", "y")]
    text = TEXT.format(t=element, function=function)
    return build(text, specs[:1], specs[1:], path, target="sm_80")


@pytest.mark.parametrize("element", ["f16", "bf16"])
@pytest.mark.parametrize("function", ["exp", "atan", "tanh"])
def test_functions_of_halves(function: str, element: str, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(np.float16 if element == "f16" else ml_dtypes.bfloat16)
    x = np.linspace(-3, 3, 70).astype(dtype)
    path = compiled(function, element, dtype.name, tmp_path / "y.so")
    (y,) = abqc.load(path, device="ptx-vm").run([x])
    expected = getattr(np, {"atan": "arctan"}.get(function, function))(x.astype(np.float32))
    np.testing.assert_array_equal(y.astype(np.float32), expected.astype(dtype).astype(np.float32))


def test_functions_of_f64_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GPUs have no exp of float64") as caught:
        compiled("exp", "f64", "float64", tmp_path / "y.so")
    assert caught.value.node == "Node_7"


def test_roots_of_f64(tmp_path: Path) -> None:
    path = compiled("sqrt", "f64", "float64", tmp_path / "y.so")
    x = np.linspace(0, 3, 70)
    np.testing.assert_array_equal(abqc.load(path, device="ptx-vm").run([x])[0], np.sqrt(x))
