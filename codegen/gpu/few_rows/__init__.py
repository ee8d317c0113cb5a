"""Products of 1 to 8 rows that stream the weight once, of strategies `int8` and `dequantize`."""
