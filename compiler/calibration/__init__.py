"""Calibration: weights encoded with what the layers really see (docs/calibration.md)."""
