"""What stands for the driver where there is no GPU: so a whole run can be rehearsed.

The environment variable names a Python file whose `driver()` returns one: `resolve(name)` gives the
addresses of its functions, and it is a device that `abqc.load` takes.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

from abqc.compiler.cuda_driver import Resolve
from abqc.errors import InputError

VARIABLE = "ABQC_KIT_DRIVER"


@cache
def stand_in() -> Any | None:
    """The driver of this process; None: the real one."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    spec = importlib.util.spec_from_file_location("abqc_kit_driver", Path(named))
    if spec is None or spec.loader is None:
        raise InputError(f"{VARIABLE}: '{named}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.driver()


def resolve() -> Resolve | None:
    """Of the functions of the driver, for `Cuda`."""
    driver = stand_in()
    return None if driver is None else driver.resolve


def device() -> Any:
    """What models run on."""
    return stand_in() or "cuda"
