"""Where a window reads planes of quads, by its rows and columns."""

from __future__ import annotations

from abqc.codegen.builder import Value
from abqc.dialects.code_conv_spec import CodeConvSpec


class OverPlanes:
    """A body that reads planes of `plane` quads, `pitch` of them in a row."""

    spec: CodeConvSpec
    plane: Value
    pitch: Value

    def row(self, dy: Value) -> Value:
        """Where row `dy` of a window begins, in quads."""
        y, stride = dy * self.spec.dilations[0], self.spec.strides[0]
        if stride == 1:
            return y * self.pitch
        phase = y % stride * self.spec.kept[1]
        return phase * self.plane + y // stride * self.pitch

    def column(self, dx: Value) -> Value:
        """Where column `dx` of its rows is."""
        x, stride = dx * self.spec.dilations[1], self.spec.strides[1]
        return x if stride == 1 else x % stride * self.plane + x // stride
