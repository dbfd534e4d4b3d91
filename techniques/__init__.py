"""Techniques: one file each, in folders named for the room of the trainer that they live in."""
