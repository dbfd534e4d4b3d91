"""Claims about configurations: fresh seeds for each, a paired test that may stop early, one sentence."""
