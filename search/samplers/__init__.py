"""Where proposals come from, and which of them may be tried."""
