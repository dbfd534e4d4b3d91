"""Techniques that live in the trainer's block room."""
