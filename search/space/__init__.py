"""The parameters of a study, and which of them mean something when."""
