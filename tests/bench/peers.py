"""Other engines as sides of a comparison: OpenVINO and llama.cpp (onnxruntime is the package's).

OpenVINO's weights of 8 and 4 bits are compressed by NNCF, in a process of the interpreter that
ABQC_NNCF_PYTHON names (this one without it): nncf need not be in the environment of the tests.
llama.cpp comes through the package llama-cpp-python. What is missing raises Unavailable.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models.fetch import Unavailable

Feeds = Mapping[str, np.ndarray]

# Symmetric 4 bits; all rows have a whole number of groups of 64.
_COMPRESS = """
import sys, nncf, openvino
source, kind, target = sys.argv[1:]
model = openvino.Core().read_model(source)
mode = nncf.CompressWeightsMode
options = {"int8": {"mode": mode.INT8_SYM}, "int4": {"mode": mode.INT4_SYM, "group_size": 64}}
openvino.save_model(nncf.compress_weights(model, **options[kind]), target)
"""


def compressed(model: Path, kind: str, folder: Path) -> Path:
    """OpenVINO's file of `model` with weights of `kind`, made where it does not exist."""
    target = folder / f"{model.parent.name}-openvino-{kind}.xml"
    if not target.exists():
        python = os.environ.get("ABQC_NNCF_PYTHON", sys.executable)
        made = target.with_name(f"making-{target.name}")
        command = [python, "-c", _COMPRESS, str(model), kind, str(made)]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.defpath})
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no output"]
            raise Unavailable(f"nncf does not compress {model.name}: {lines[-1]}")
        made.with_suffix(".bin").replace(target.with_suffix(".bin"))
        made.replace(target)
    return target


class OpenVino:
    """A model in OpenVINO on the CPU: `kind` f32, bf16, int8 or int4."""

    def __init__(self, model: Path, kind: str, threads: int, folder: Path) -> None:
        try:
            import openvino
        except ImportError as error:
            raise Unavailable(f"the package openvino is missing: {error}") from error
        path = compressed(model, kind, folder) if kind in ("int8", "int4") else model
        core = openvino.Core()
        compiled = core.compile_model(
            str(path),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
            },
        )
        self.names = [name for port in compiled.inputs for name in port.names]
        self._request = compiled.create_infer_request()

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """The outputs in the model's order, valid until the next run."""
        taken = {name: feeds[name] for name in self.names if name in feeds}
        results = self._request.infer(taken, share_inputs=True, share_outputs=True)
        return list(results.values())


class Llama:
    """A GGUF file in llama.cpp, one sequence."""

    def __init__(self, path: Path, threads: int, room: int) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise Unavailable(f"the package llama-cpp-python is missing: {error}") from error
        self._api: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = room
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise Unavailable(f"llama.cpp does not load {path}")

    def reset(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def step(self, ids: np.ndarray, begin: int) -> None:
        """Append tokens after `begin` others; the logits of the last one are computed."""
        batch = self._api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = int(token), begin + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(ids) - 1
        code = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")


def requantized(source: Path, kind: str, folder: Path) -> Path:
    """The GGUF file of `source` in Q4_0 or Q8_0, made by llama.cpp from whatever types it has."""
    try:
        import llama_cpp
    except ImportError as error:
        raise Unavailable(f"the package llama-cpp-python is missing: {error}") from error
    target = folder / f"{source.stem}-{kind}.gguf"
    if not target.exists():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = {"Q4_0": 2, "Q8_0": 7}[kind]  # LLAMA_FTYPE_MOSTLY_*
        settings.allow_requantize = True
        settings.nthread = 1
        made = target.with_name(f"making-{target.name}")
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(made).encode(), ctypes.byref(settings)
        )
        if code != 0:
            raise Unavailable(f"llama_model_quantize returned {code} for {source}")
        made.replace(target)
    return target
