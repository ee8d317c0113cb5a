"""Reads and writes at positions that come from data: gathers and scatters."""
