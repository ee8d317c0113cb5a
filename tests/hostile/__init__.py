"""Models that no exporter means to write: handmade ones, and mutations of good ones."""
