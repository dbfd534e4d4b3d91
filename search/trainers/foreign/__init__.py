"""Somebody else's script: its scan, its draft, its runs, its log."""
