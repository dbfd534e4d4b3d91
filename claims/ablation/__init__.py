"""A configuration taken apart: what each technique does in it, the pairs that matter, its BPB chain."""
