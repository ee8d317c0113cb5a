"""From an ONNX file to linalg + abq (float), with the weights in a weight store."""
