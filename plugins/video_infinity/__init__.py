"""Clip parallelism and dual-scope attention for long videos."""
