"""Rows that threads share: norms, softmax, Hadamard transforms, sums over a row."""
