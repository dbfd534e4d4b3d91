"""Techniques that live in the trainer's averaging room."""
