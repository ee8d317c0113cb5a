"""The rules of `lower-abq`, an operation each, and the loops that CPUs run for some."""
