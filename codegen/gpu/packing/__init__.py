"""Rows of activations: quantized, packed, measured, and the bytes that they have then."""
