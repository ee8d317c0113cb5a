"""Operators, a file for each family. `registry.load_rules` imports them all."""
