"""Techniques that live in the trainer's compression room."""
