"""Channels of values: where they are written and read, and linear maps of them."""
