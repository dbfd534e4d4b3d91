"""Techniques of the output head and the training loss."""
