"""What a matmul strategy is, its schedules and order of blocks; `int8` and `dequantize`."""
