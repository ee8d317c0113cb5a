"""From an ONNX file to linalg + abq (float), with the weights in a weight store."""

from .importer import import_model
from .result import ImportedModel, NodeInfo, TensorSpec

__all__ = ["ImportedModel", "NodeInfo", "TensorSpec", "import_model"]
