"""The command line: parses, calls a command, turns errors into one line and an exit code.

0 done   1 failed   2 wrong usage   130 interrupted
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from abqc import __version__
from abqc.compiler import commands
from abqc.errors import AbqcError


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"abqc: error: {message}; see `{self.prog} --help`\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="abqc",
        description="Compiles ONNX models into quantized shared libraries.",
        epilog="`abqc COMMAND --help` explains a command and gives examples.",
    )
    parser.add_argument("--version", action="version", version=f"abqc {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands.ALL:
        sub = subparsers.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.__doc__,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # SUPPRESS keeps the value that stood before the command.
        sub.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has left, as in `abqc inspect model.so | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except AbqcError as error:
        if args.debug:
            raise
        return fail(str(error), error.exit_code)
    except Exception as error:
        if args.debug:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return fail(f"{text}; run again with --debug for the traceback", 1)


def fail(message: str, code: int) -> int:
    print(f"abqc: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
