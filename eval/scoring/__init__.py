"""Scores pictures that already exist, from any tool."""
