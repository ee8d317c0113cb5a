"""The errors that users see. Imports nothing; every other module may import it."""

from __future__ import annotations


class AbqcError(Exception):
    """Something the user can act on: what went wrong, where, and what to do.

    `node` is the ONNX node's name, where one is to blame; `hint` is one sentence of advice.
    The command line prints `str(error)` on one line and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, node: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.node:
            text += f" (node '{self.node}')"
        if self.hint:
            text += f"; {self.hint}"
        return " ".join(text.split())


class PerformanceWarning(UserWarning):
    """A part of a model that runs, but far below what its target can do."""


class ModelError(AbqcError):
    """The ONNX model is broken, or holds something that is not supported."""


class RecipeError(AbqcError):
    """The recipe cannot be parsed, matches nothing, or asks for what no kernel can do."""


class NothingToQuantizeError(RecipeError):
    """The recipe quantizes, and the model has no node with constant weights that it is for."""


class CompileError(AbqcError):
    """A stage of the compiler failed; the message names the pass and the file with its input."""


class ToolchainError(AbqcError):
    """No C compiler, no linker, no thread runtime."""


class ArtifactError(AbqcError):
    """The shared library is truncated, altered, of another version, or not one of ours."""


class InputError(AbqcError):
    """An input tensor has a wrong name, type, rank, size or device."""


class DeviceError(AbqcError):
    """No GPU or driver, one that cannot run the model, or one that failed."""
