"""Run a compiled model on arrays in files.

Inputs are .npy files, one each, or one .npz file whose arrays have their names; the outputs go, by
name, into one .npz file, a single one into a .npy file too. Types that numpy lacks (bfloat16,
float8, int4) are read and written as their codes: uint16, uint8, or small integers as int8 and
uint8. Quantized caches may be given as floats; they come out as they are stored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from abqc.compiler.commands.arguments import add_device, add_inputs, add_threads, read_inputs
from abqc.compiler.commands.table import table
from abqc.errors import AbqcError, InputError

NAME = "run"
SUMMARY = "run a compiled model"
EXAMPLES = """examples:
  abqc run model.so --input x=x.npy --output y.npz
  abqc run model.so --input feeds.npz --output y.npz     # all inputs by name
  abqc run gpu.so --input x=x.npy --device ptx-vm        # without a GPU: slow, every access checked
  abqc run model.so --input input_ids=ids.npy --input attention_mask=mask.npy --threads 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the library that `abqc compile` wrote")
    add_inputs(parser, "inputs")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="write the outputs as .npz, a single one as .npy",
    )
    add_device(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np
    from abqc.runtime.caches import encode_caches
    from abqc.runtime.element_types import as_codes
    from abqc.runtime.model import load

    feeds = read_inputs(args.input)
    model = load(args.model, threads=args.threads, device=args.device)
    single = args.output is not None and args.output.suffix == ".npy"
    if single and len(model.outputs) != 1:
        raise InputError(
            f"{args.output} holds one array, the model has {len(model.outputs)} outputs",
            hint="name a .npz file",
        )
    stored = encode_caches(model.manifest, feeds)
    results = list(zip(model.outputs, model.run(stored), strict=True))
    print(table(("output", "type", "shape"), [(s.name, s.dtype, _sizes(y)) for s, y in results]))
    outputs = {spec.name: as_codes(y, spec.dtype) for spec, y in results}
    if args.output:
        try:
            with open(args.output, "wb") as file:
                if single:
                    np.save(file, next(iter(outputs.values())))
                else:
                    np.savez(file, **outputs)  # type: ignore[arg-type]
        except OSError as error:
            raise AbqcError(f"cannot write {args.output}: {error}") from error
    return 0


def _sizes(array: object) -> str:
    return "x".join(map(str, array.shape)) or "scalar"  # type: ignore[attr-defined]
