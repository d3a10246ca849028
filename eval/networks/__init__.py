"""Networks that turn images and prompts into features. Each takes canonical uint8 images and does its own
preprocessing, so that no optional package changes a score. Nothing is downloaded unless a hub id is named.
"""
