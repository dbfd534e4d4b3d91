"""Techniques that live in the trainer's data room."""
