"""Finished stages by the address of all that their results depend on."""
