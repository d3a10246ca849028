"""Classifier-free guidance in an interval of noise levels."""
