"""Techniques that live in the trainer's evaluation room."""
