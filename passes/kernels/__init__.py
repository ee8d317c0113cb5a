"""Kernels out of loops, their launches and checks."""
