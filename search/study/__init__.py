"""A study file, read in one pass and checked."""
