"""Train what comes with the package: `costmodel/weights/`.

    python tests/bench/costmodel/train.py FOLDER --name zen4

Fits boosted trees to all timings of FOLDER (those of `HELD_OUT` are left out, so that the table of
evaluate.py is of this model), each with and without the operations of its kernel. The file says
what it was trained on. The token model is trained by evaluate.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import data
import lightgbm
import models
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.shipped import WEIGHTS


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="of the files")
    args = parser.parse_args()
    found = data.load(args.folder)
    WEIGHTS.mkdir(exist_ok=True)
    model = AnalyticModel()
    models.fit_seeing_and_blind(model, found.training)
    path = WEIGHTS / f"{args.name}.json"
    trained = {
        "command": f"tests/bench/costmodel/train.py FOLDER --name {args.name}",
        "kernels": len({each.kernel for each in found.training}),
        "timings": len(found.training),
        "library": f"lightgbm {lightgbm.__version__}",
        "threads": 1,
    }
    model.save(path, trained)
    print(f"{path}: {path.stat().st_size} bytes, {model.status}")


if __name__ == "__main__":
    main()
