"""Caches over denoising steps: the engines of diffusers, bound to one run."""
