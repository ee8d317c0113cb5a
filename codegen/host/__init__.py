"""The host function: what remains of `@main` after the kernels have left."""
