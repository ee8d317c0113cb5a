"""Packed weights of strategies `int8` and `dequantize`: bytes, loads, decoding in registers."""
