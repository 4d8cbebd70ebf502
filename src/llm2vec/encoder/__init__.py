"""Texts to tokens, batches, states and vectors: the one straight line."""
