"""Say what is installed, what is missing, and how to get it."""

from __future__ import annotations

import argparse

NAME = "doctor"
SUMMARY = "check the installation"
EXAMPLES = """examples:
  abqc doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.doctor import report

    text, ok = report()
    print(text)
    return 0 if ok else 1
