"""Techniques that live in the trainer's optimizer room."""
