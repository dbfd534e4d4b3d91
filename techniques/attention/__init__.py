"""Techniques that live in the trainer's attention room."""
