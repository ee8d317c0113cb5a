"""Strategy `planes`: codes as planes of bits, products by binary tensor cores."""
