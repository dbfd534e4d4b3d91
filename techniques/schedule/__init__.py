"""Techniques that live in the trainer's schedule room."""
