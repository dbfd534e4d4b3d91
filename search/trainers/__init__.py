"""The process that a trial runs in: our trainer, or somebody else's."""
