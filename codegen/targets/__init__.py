"""Targets: one file each, resolved once into a frozen description."""
