"""docs/tour.md run as it stands, and the pictures of what it shows."""
