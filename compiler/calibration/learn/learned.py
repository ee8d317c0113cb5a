"""What learning finds for a weight, and how that gets into its codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.compiler.calibration.column_encoders import ScalarEncoder
from abqc.dialects.formats import QuantizedTensor, quantize_weight
from abqc.dialects.group_scales import Choice
from abqc.passes.quantization.encoding import Encoding
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Learned:
    """The scales and zero points of a weight, None where they are not learned, and vectors u [N]
    and v [K], whose product is added to the weight before it is encoded."""

    choice: Choice | None = None
    correction: tuple[F32, F32] | None = None

    def nearest(self, weight: F32, encoding: Encoding) -> QuantizedTensor:
        """The codes nearest to `weight` [N, K], with the correction."""
        scheme = encoding.scheme
        if self.correction is not None:
            weight = weight + np.outer(*self.correction)
        if self.choice is None:
            return quantize_weight(weight, scheme, search=encoding.search)
        encoder = ScalarEncoder(weight, scheme, None, self.choice)
        for column in range(weight.shape[1]):
            encoder.encode(column, weight[:, column])
        return encoder.finish()
