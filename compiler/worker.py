"""What the process of a compile does: build, and say how it went.

The messages are {"progress": [step, done, total]}, {"pass": name}, and at the end {"error": ...} or
{"done": notes}; `job.py` reads them.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from typing import Any

from abqc.codegen.kernel_cache import generator_version
from abqc.codegen.toolchain import find_compiler
from abqc.compiler.build import build
from abqc.compiler.job import Request
from abqc.compiler.onnx_import.registry import load_rules
from abqc.compiler.pipeline import stages
from abqc.costmodel.load import shipped_model
from abqc.dialects.context import prepare_context
from abqc.errors import AbqcError
from abqc.passes.infrastructure import find_pass
from abqc.runtime.environment import set_temporary_folder


def _import_passes(*, on_device: bool) -> None:
    for names in stages(on_device=on_device).values():
        for name in names:
            find_pass(name)


# Once for all forks:
_import_passes(on_device=False)
for _device in ("cpu", "gpu"):
    generator_version(_device)
load_rules()
shipped_model("cpu")
prepare_context()


def _ask_compiler() -> None:
    find_compiler().identity()


def _read_recipes() -> None:
    from abqc.compiler.recipe_text import parse

    parse("w8a8", "")


def _import_dialects() -> None:
    from abqc.dialects.mlir import llvm, nvvm

    assert llvm and nvvm


def _import_gpus() -> None:
    from abqc.codegen.targets.cuda import CudaTarget

    CudaTarget.named("sm_90a")
    _import_passes(on_device=True)


def _import_calibration() -> None:
    from abqc.compiler.calibration import calibrate

    assert calibrate


# What not every compile needs, for the server (fork_server.py).
PREPARATIONS = (_ask_compiler, _read_recipes, _import_dialects, _import_gpus, _import_calibration)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


Say = Callable[[dict[str, Any]], None]
Work = Callable[[Request, Callable[[str, int, int], None], Callable[[str], None]], list[str]]


def compile_request(request: Request, say: Say) -> None:
    """Compile, and answer."""
    answer(request, say, build)


def answer(request: Request, say: Say, work: Work) -> None:
    """Do `work`, whose notes are the answer; whatever is raised becomes a message.

    All temporary files, those of the C compiler too, are made in `request.work`, which is removed
    even if this process is killed.
    """
    set_temporary_folder(request.work)
    try:
        notes = work(
            request,
            lambda step, done, total: say({"progress": [step, done, total]}),
            lambda name: say({"pass": name}),
        )
    except AbqcError as error:
        say({"error": _describe(error, type(error).__name__, error.message)})
    except MemoryError as error:
        say({"error": _describe(error, "CompileError", "out of memory")})
    except OSError as error:
        text, hint = _explain(error)
        say({"error": _describe(error, "CompileError", text, hint)})
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}"
        say({"error": _describe(error, "CompileError", text)})
    else:
        say({"done": notes})


def _explain(error: OSError) -> tuple[str, str | None]:
    """A message and a hint for a failure of the operating system."""
    text = (error.strerror or str(error)).lower()
    if error.filename is not None:
        text = f"'{error.filename}': {text}"
    if error.errno in _NO_ROOM:
        return text, "free some space, or set TMPDIR to a folder that has more"
    return text, None


def _describe(
    error: BaseException, kind: str, message: str, hint: str | None = None
) -> dict[str, Any]:
    return {
        "type": kind,
        "message": message,
        "node": getattr(error, "node", None),
        "hint": getattr(error, "hint", hint),
        "traceback": "".join(traceback.format_exception(error)),
    }
