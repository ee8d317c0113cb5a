"""Measure the rows of docs/accuracy.md.

    python tests/accuracy/measure.py                   # every row that has no result yet
    python tests/accuracy/measure.py "w4*" --again     # rows by pattern, measured anew
    python tests/accuracy/measure.py --list
    python tests/accuracy/measure.py --write           # and write docs/accuracy.md from all results

A result is kept in the folder measured/ with what it was made of: model, recipe and whether it was
calibrated. It does not know of changes in the compiler: use --again. A row that is interrupted
after compiling goes on from its library. What the peers reach is measured by peer_llama.py and
peer_onnxruntime.py into the same folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
from abqc.compiler.commands.inspect import weight_bits
from abqc.compiler.driver import compile_file
from abqc.errors import AbqcError
from accuracy import page, results
from accuracy.rows import ROWS, Row
from accuracy.subjects import SUBJECTS, THREADS
from accuracy.texts import folder
from models.fetch import Unavailable

HEAD = "lm_head"


def library_of(row: Row) -> Path:
    return folder() / "libraries" / f"{row.name}.so"


def measure(row: Row) -> dict[str, Any]:
    """Compile and measure one row; AbqcError where it cannot be compiled, Unavailable for files."""
    subject = SUBJECTS[row.model]
    onnx = subject.onnx()
    library = library_of(row)
    library.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    if not library.exists():
        compile_file(
            onnx,
            quant=row.recipe,
            output=library,
            calib=subject.calibration(onnx) if row.calibrated else None,
            budget=row.budget or None,
            note=lambda text: None,
        )
    with abqc.load(library, threads=THREADS) as model:
        figures = compiled_figures(model)
        figures |= subject.measure(onnx, model)
    figures["seconds"] = time.perf_counter() - started
    result = results.save(row.name, row.made_of, figures)
    library.unlink()
    return result


def compiled_figures(model: Any) -> dict[str, Any]:
    """Sizes: bits per weight of the products but the head, which rows keep at 8 bits."""
    products = [op for op in model.manifest["ops"] if op["node"] != HEAD]
    count, bits = weight_bits(products)
    return {
        "bytes": Path(model.path).stat().st_size,
        "weights": count,
        "bits": bits,
        "compile_seconds": model.manifest["compile_seconds"],
        "strategies": sorted({op["strategy"] for op in products}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", default=["*"], help="patterns over names (default: all)")
    parser.add_argument("--again", action="store_true", help="measure rows that have a result too")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.md")
    args = parser.parse_args()
    chosen = [row for row in ROWS if any(fnmatchcase(row.name, p) for p in args.rows)]
    if not chosen:
        sys.exit(f"no row matches; they are {', '.join(row.name for row in ROWS)}")
    failed = 0
    for row in [] if args.write and args.rows == ["*"] and not args.again else chosen:
        failed += 0 if args.list else not _row(row, args.again)
        if args.list:
            print(f"{row.name:24} {row.model:16} {row.recipe.splitlines()[0]}")
    if args.write:
        print(page.write())
    return 1 if failed else 0


def _row(row: Row, again: bool) -> bool:
    """Measure a row unless it has a result, and say what came of it; False where it failed."""
    result = None if again else results.load(row.name, row.made_of)
    if again:
        library_of(row).unlink(missing_ok=True)  # of an interrupted run of another compiler
    try:
        print(f"{row.name}: {page.summary(result or measure(row))}", flush=True)
    except (AbqcError, Unavailable) as error:
        print(f"{row.name}: {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
