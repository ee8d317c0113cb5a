"""The ONNX graph before it is lowered: read, checked, put in order, simplified."""
