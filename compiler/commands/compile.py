"""Compile an ONNX model into one shared library.

The quantization recipe says what becomes of the weights (w) and activations (a): `none`, `w8a8`,
`w4a8`, `w4a4 rotate`, `w4:g64:asym a8`; `a16` leaves activations float, which a GPU rounds to f16;
`a16:bf16` rounds them to bf16, `none:bf16` weights and activations. A recipe file holds one rule a
line, a pattern over ONNX node names and a recipe; the last rule that matches wins.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from abqc.compiler.commands.arguments import add_shape
from abqc.compiler.commands.progress import Progress
from abqc.compiler.commands.table import byte_count

NAME = "compile"
SUMMARY = "compile an ONNX model into a shared library"
EXAMPLES = """examples:
  abqc compile model.onnx -o model.so --quant w4a8
  abqc compile model.onnx -o model.so --quant none:bf16
  abqc compile model.onnx -o model.so --quant "w4a4 rotate"
  abqc compile model.onnx -o model.so --recipe recipe.txt --shape x=1x3x224x224
  abqc compile model.onnx -o model.so --quant w2a8 --target sm_90a
  abqc compile model.onnx -o model.so --quant "w3a8 gptq" --calib samples.npz
  abqc compile model.onnx -o model.so --quant w4a8 --calib text.txt --calib-workers 4
  abqc compile model.onnx -o model.so --dump-dir stages
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the ONNX file; external data stand beside it")
    parser.add_argument("-o", "--output", type=Path, help="default: beside the model, .so")
    recipe = parser.add_mutually_exclusive_group()
    recipe.add_argument(
        "--quant",
        metavar="RECIPE",
        default="none",
        help="default: none (float); none:bf16 has matrix products in bf16",
    )
    recipe.add_argument("--recipe", metavar="FILE", type=Path, help="a file with rules")
    parser.add_argument(
        "--target",
        default="cpu",
        help="cpu (default), a GPU such as sm_80, sm_89 or sm_90a, several (sm_80,sm_90a) or cuda",
    )
    parser.add_argument(
        "--calib",
        metavar="FILE",
        type=Path,
        help="calibrate with these samples: an .npz file or a folder of them, arrays by input name;"
        " or a text, for a language model with its tokenizer.json beside it",
    )
    parser.add_argument(
        "--calib-workers",
        metavar="N",
        help="how many processes calibrate (default: ABQC_NUM_THREADS, else the usable cores), or "
        "a cluster: dask:tcp://host:8786; the result does not depend on it",
    )
    parser.add_argument(
        "--budget",
        metavar="4bpw",
        help="with --calib: each product's own width, so that all take so many bits a weight, the "
        "library so many bytes (size=60MB), or a run so long (latency=12ms@input_ids=1x128, by the "
        "cost model); the recipe is written beside the library",
    )
    parser.add_argument(
        "--cpu",
        metavar="native",
        help="kernels for these CPUs alone, for a smaller library that is compiled sooner: native "
        "(this machine), a level such as x86-64-v3, or instruction sets such as avx512,avx2 "
        "(default: ABQC_CPU, else all, and each CPU takes the best that it has)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail where the model does not allow what the recipe asks for (a rotation of the "
        "residual stream, say), rather than note it and go on without",
    )
    parser.add_argument(
        "--last-logits",
        action="store_true",
        help="of a decoder, give the logits of the last token alone, as generating text reads "
        "them: a prompt takes less time",
    )
    add_shape(parser, "pin an input's shape")
    parser.add_argument("--dump-dir", metavar="DIR", type=Path, help="write the IR of every pass")


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.driver import compile_file

    output = args.output or args.model.with_suffix(".so")
    started = time.perf_counter()
    notes: list[str] = []
    with Progress() as progress:
        compile_file(
            args.model,
            quant=args.recipe or args.quant,
            target=args.target,
            output=output,
            shapes=dict(args.shape),
            dump_dir=args.dump_dir,
            calib=args.calib,
            calib_workers=args.calib_workers,
            budget=args.budget,
            cpu=args.cpu,
            strict=args.strict,
            last_logits=args.last_logits,
            progress=progress,
            note=notes.append,
        )
    seconds = time.perf_counter() - started
    print(f"{output}: {byte_count(output.stat().st_size)}, compiled in {seconds:.1f} s")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return 0
