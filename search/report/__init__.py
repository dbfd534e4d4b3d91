"""What a study found, for a person."""
