"""Products in tiles by `mma.sync`, K in stages, of strategies `int8` and `dequantize`."""
