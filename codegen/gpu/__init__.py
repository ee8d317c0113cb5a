"""GPU kernels: grid functions of one block of threads an index, and their way to PTX."""
