"""Integer accumulators that become floats by a subtraction instead of a conversion, which runs at a
quarter of the rate or less.

The f32 number 1.5 * 2^23 has steps of 1: an integer v, |v| < 2^22, added to its bits makes the
number 1.5 * 2^23 + v. So an accumulator that begins at MAGIC_BITS is, read as a float, MAGIC too
large.
"""

MAGIC_BITS = 0x4B400000
MAGIC = 1.5 * 2.0**23
MAGIC_RANGE = 1 << 22
