"""Run a compiled model on arrays in files.

Every input is an .npy file; the outputs go, by name, into one .npz file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from abqc.compiler.commands.arguments import add_device, add_threads, named_file, read_array
from abqc.compiler.commands.table import table
from abqc.errors import AbqcError

NAME = "run"
SUMMARY = "run a compiled model"
EXAMPLES = """examples:
  abqc run model.so --input x=x.npy --output y.npz
  abqc run gpu.so --input x=x.npy --device ptx-vm        # without a GPU: slow, every access checked
  abqc run model.so --input input_ids=ids.npy --input attention_mask=mask.npy --threads 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the library that `abqc compile` wrote")
    parser.add_argument(
        "--input",
        metavar="NAME=FILE",
        action="append",
        type=named_file,
        default=[],
        help="an input as .npy; once for every input",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the outputs as .npz")
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np
    from abqc.runtime.model import load

    feeds = {name: read_array(path) for name, path in args.input}
    model = load(args.model, threads=args.threads, device=args.device)
    names = [output.name for output in model.outputs]
    outputs = dict(zip(names, model.run(feeds), strict=True))
    print(table(("output", "type", "shape"), [(n, y.dtype, _sizes(y)) for n, y in outputs.items()]))
    if args.output:
        try:
            with open(args.output, "wb") as file:
                np.savez(file, **outputs)  # type: ignore[arg-type]
        except OSError as error:
            raise AbqcError(f"cannot write {args.output}: {error}") from error
    return 0


def _sizes(array: object) -> str:
    return "x".join(map(str, array.shape)) or "scalar"  # type: ignore[attr-defined]
