"""Samplers on what real trainings gave: an exact table of a small space, and models fitted to a large one."""
