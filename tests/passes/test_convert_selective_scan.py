from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.onnx_import import import_model
from abqc.dialects.reference_selective_scan import selective_scan
from abqc.passes.infrastructure import Unit, run_pipeline, walk
from onnx_models import save
from selective_scan_models import (
    BY_PRODUCT,
    CHANNELS,
    SKIP,
    SOFTPLUS,
    STATES,
    constants,
    in_double,
    loop,
    scan,
    steps,
)

THRESHOLD = SOFTPLUS | {"soft": "Softplus delta", "large": "Greater delta twenty"}
THRESHOLD = {**THRESHOLD, "plain": "Where large delta soft"}


def found(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """The selective scans of a model, `softplus` for those that have one, and the loops and
    concatenations that are left."""
    imported = import_model(save(proto, folder), work_dir=folder)
    run_pipeline(imported.module.operation, ["convert-selective-scan"], Unit(store=imported.store))
    words = []
    with imported.module.context:
        for op in walk(imported.module.operation):
            if op.name == "abq.selective_scan":
                words.append("softplus" if op.attributes["softplus"].value else "scan")
            elif op.name in ("scf.for", "scf.while", "tensor.concat"):
                words.append(op.name)
    return words


SCANS = {
    "scan": (scan(), "scan"),
    "by a product": (scan(BY_PRODUCT), "scan"),
    "state first": (scan(turned=True), "scan"),
    "factors exchanged": (scan({"drive": "Mul b_wide dx_wide", "kept": "Mul h decay"}), "scan"),
    "terms exchanged": (scan({"dx": "Mul x delta", "new": "Add drive kept"}), "scan"),
    "b first": (
        scan({"xw": "Unsqueeze x last", "db": "Mul wide b_wide", "drive": "Mul db xw"}),
        "scan",
    ),
    "softplus": (scan(SOFTPLUS), "softplus"),
    "softplus above 20": (scan(THRESHOLD), "softplus"),
    "rows backwards": (scan(scan_output_directions=[1]), "scan"),
    "x past the state": (scan(SKIP), "scan"),
    "loop": (loop(), "scan"),
    "steps": (steps(), "scan"),
    "steps by products": (steps(edits=dict.fromkeys(range(3), BY_PRODUCT)), "scan"),
    "steps with x past the state": (steps(edits=dict.fromkeys(range(3), SKIP)), "scan"),
    "one step more": (steps(2), "scan"),
}


@pytest.mark.parametrize("name", SCANS)
def test_scans_in_all_their_forms(name: str, tmp_path: Path) -> None:
    proto, expected = SCANS[name]
    assert found(proto, tmp_path) == [expected]


TWICE = {"again": "Mul dx x", "dx_wide": "Unsqueeze again last"}
NO_SCANS = {
    "y of the state before": scan({"read": "Mul h c_wide"}),
    "no exponential": scan({"kept": "Mul power h"}),
    "another exponent": scan({"minus": "Neg power", "decay": "Exp minus"}),
    "another delta in what is added": scan({"dx": "Mul decay_rows x", "decay_rows": "Neg delta"}),
    "x twice": scan(TWICE),
    "no b": scan({"drive": "Identity dx_wide"}),
    "something else is added": scan({"sum": "Add kept drive", "new": "Add sum one"}),
    "subtracted": scan({"new": "Sub kept drive"}),
    "the state doubles": scan({"next": "Add new new"}, state="next"),
    "the state is what was kept": scan(state="kept"),
    "sum over channels": scan({"read": "Mul new wide", "y": "ReduceSum read middle"}),
    "delta past the state": scan({**SKIP, "read_x": "Mul delta D"}),
    "x past the state by another x": scan({**SKIP, "read_x": "Mul x x"}),
    "x past the state in one step": steps(edits={1: SKIP}),
    "largest instead of sum": scan({"y": "ReduceMax read last"}),
    "backwards": scan(scan_input_directions=[1, 1, 1, 1]),
    "x backwards": scan(scan_input_directions=[0, 1, 0, 0]),
    "not softplus, in the body": scan({**THRESHOLD, "large": "Greater delta five"}),
    "a loop that may end early": loop(ends_early=True),
    "f64": in_double(scan()),
    "f64, steps": in_double(steps()),
    "rows exchanged": steps(order=[1, 0, 2]),
    "a row twice": steps(order=[0, 1, 1]),
    "a step of another state": steps(edits={1: {"kept": "Mul decay drive"}}),
    "a step with the b of another": steps(edits={1: {"b_wide": "Unsqueeze b_0! middle"}}),
    "a step that adds more": steps(edits={1: {"dx": "Add delta x"}}),
}


@pytest.mark.parametrize("name", NO_SCANS)
def test_what_differs_in_anything_stays(name: str, tmp_path: Path) -> None:
    assert not {"scan", "softplus"} & set(found(NO_SCANS[name], tmp_path))


EDITS = SOFTPLUS | SKIP


@pytest.mark.parametrize(
    "proto", [scan(EDITS), steps(edits=dict.fromkeys(range(3), EDITS))], ids=["scan", "steps"]
)
def test_results(proto: onnx.ModelProto, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = {"h0": (2, CHANNELS, STATES), "deltas": (2, 3, CHANNELS), "xs": (2, 3, CHANNELS)}
    shapes |= dict.fromkeys(("bs", "cs"), (2, 3, STATES))
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    wide = {name: array.astype(np.float64) for name, array in feeds.items()}
    y, state = selective_scan(
        wide["xs"], wide["deltas"], constants()["A"], wide["bs"], wide["cs"],
        softplus=True, initial=wide["h0"],
    )  # fmt: skip
    with abqc.compile(save(proto, tmp_path)) as model:
        actual = model.run(feeds)
    y += wide["xs"] * constants()["D"]
    np.testing.assert_allclose(actual[0], y, 0, 1e-5)
    np.testing.assert_allclose(actual[1], state, 0, 1e-5)
