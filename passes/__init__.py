"""What changes: one pass, one file."""
