"""Techniques that live in the trainer's quantization room."""
