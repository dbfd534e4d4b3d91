"""Measurements of the trainer: steps, bytes, seeds, presets, a GPU."""
