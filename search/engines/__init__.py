"""Where workers run: here, on Ray, on Slurm."""
