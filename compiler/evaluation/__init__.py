"""What a compiled model costs in accuracy: figures, the runs that they come from, the report."""
