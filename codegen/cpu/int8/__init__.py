"""Strategy `int8`: codes unpacked to bytes, dot products of these, tile registers."""
