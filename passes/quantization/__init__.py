"""Formats and codes: of weights, of what products and scans read, of marked values."""
