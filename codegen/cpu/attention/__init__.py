"""Attention: queries times keys, a softmax and values, in one pass over the keys."""
