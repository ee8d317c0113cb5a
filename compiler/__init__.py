"""Who conducts: command line, ONNX import, pipeline. Nothing imports this package."""
