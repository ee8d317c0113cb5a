"""Stored codes and scales on every target: their bytes, and what kernels make of these."""
