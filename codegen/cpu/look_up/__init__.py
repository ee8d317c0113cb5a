"""Strategy `look-up`: sums of activations in tables, looked up by weights of one bit."""
