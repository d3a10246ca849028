"""hasten."""
