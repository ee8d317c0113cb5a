"""Integer-only graphs: what a value is to integer arithmetic, and loops over codes."""
