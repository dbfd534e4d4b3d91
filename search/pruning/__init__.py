"""Which running trials are given up, on what evidence."""
