"""Techniques that live in the trainer's embedding room."""
