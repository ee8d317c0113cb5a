"""Loops over tensors: what they compute, and new ones; slices, shapes, constants."""
