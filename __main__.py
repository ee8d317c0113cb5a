"""`python -m abqc` is the command `abqc`."""

from __future__ import annotations

import sys

from abqc.compiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
