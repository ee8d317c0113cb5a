"""Text from compiled language models: what `abqc generate` does."""
