"""Strategies `trellis` and `trellis-float`: trellis codes, decoded in vectors."""
