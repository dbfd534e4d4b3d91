"""One configuration as a file that stands alone."""
