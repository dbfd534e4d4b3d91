"""The trainer's kernel: what train_gpt.py stands on and techniques may use."""
