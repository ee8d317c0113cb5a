"""Convolutions of codes without a matrix of patches: planes of bytes, weights in panels."""
