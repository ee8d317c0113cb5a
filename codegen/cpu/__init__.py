"""Kernels for x86 CPUs: one file a strategy."""
