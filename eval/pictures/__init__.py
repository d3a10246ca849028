"""Reads pictures from folders, archives and arrays, and hands them over in batches."""
