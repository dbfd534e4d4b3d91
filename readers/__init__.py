"""What other people's training scripts read and their logs say: text, never run. Nothing of the search."""
