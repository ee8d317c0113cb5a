"""Strategy `trellis`: trellis codes, decoded in shared memory."""
