"""Train what comes with the package: `costmodel/weights/`.

    python tests/bench/costmodel/train.py FOLDER --name zen4 [--tokens]

Fits boosted trees to all timings of FOLDER (those of `HELD_OUT` are left out, so that the table of
evaluate.py is of this model), each with and without the operations of its kernel, and, with
`--tokens`, the token model to all kernels. Files say what they were trained on.
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
    parser.add_argument("--tokens", action="store_true", help="the token model too (torch)")
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
    if args.tokens:
        import token_training

        held_out = {each.kernel for timed in found.tasks.values() for each in timed}
        kernels = {key: row for key, row in found.kernels.items() if key not in held_out}
        tokens = WEIGHTS / f"{args.name}-tokens.npz"
        token_training.fit(kernels, found.training).save(tokens)
        print(f"{tokens}: {tokens.stat().st_size} bytes, {len(kernels)} kernels")


if __name__ == "__main__":
    main()
