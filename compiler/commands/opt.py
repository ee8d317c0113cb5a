"""Run passes on MLIR text, for developers.

Reads a module with abq ops, runs the passes in the order given and prints the result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from abqc.compiler.commands.table import table
from abqc.errors import CompileError, InputError

NAME = "opt"
SUMMARY = "run compiler passes on MLIR text"
EXAMPLES = """examples:
  abqc opt --list
  abqc opt module.mlir --passes canonicalize,cse
  abqc opt - --passes resolve-dims -o out.mlir < module.mlir
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="-", help="MLIR text; - is standard input")
    parser.add_argument("--passes", metavar="A,B,C", default="", help="the passes, in order")
    parser.add_argument(
        "--unit",
        metavar="FILE",
        type=Path,
        help="what a failed compile kept beside the IR: recipe, target, kernels (trusted as a "
        "program is)",
    )
    parser.add_argument("-o", "--output", type=Path, help="write there instead of printing")
    parser.add_argument("--list", action="store_true", help="list the passes")


def run(args: argparse.Namespace) -> int:
    from abqc.passes.pipeline import available

    if args.list:
        print(table(("pass", "what it does"), sorted(available().items())))
        return 0
    names = [name.strip() for name in args.passes.split(",") if name.strip()]
    result = run_names(read_text(args.file), names, args.unit).rstrip("\n") + "\n"
    if args.output is None:
        sys.stdout.write(result)
        return 0
    try:
        args.output.write_text(result, encoding="utf-8")
    except OSError as error:
        raise CompileError(f"cannot write {args.output}: {error}") from error
    return 0


def run_names(text: str, names: list[str], unit: Path | None) -> str:
    """The module after the passes; what a failing one was given is kept."""
    from abqc.compiler.failures import keep, load_unit
    from abqc.passes.infrastructure import PassFailure
    from abqc.passes.pipeline import run_passes

    with tempfile.TemporaryDirectory(prefix="abqc-opt-") as work:
        try:
            return run_passes(text, names, load_unit(unit, Path(work)) if unit else None)
        except PassFailure as failure:
            if unit is None:
                keep(failure)
            raise


def read_text(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {name}: {error}") from error
