"""Rows of activations: rotated, quantized, packed, normalized on the way."""
