"""Attention: few rows, tiles on CUDA cores and on tensor cores, quantized caches."""
