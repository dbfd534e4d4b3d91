"""What a configuration will cost, before a second is spent on it."""
