"""Builds IR: tensors, loops, branches, and the scalars inside of their bodies."""
