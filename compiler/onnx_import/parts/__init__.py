"""What several operators are made of: windows, interpolation, recurrences, attention, codes."""
