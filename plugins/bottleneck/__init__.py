"""Bottleneck Sampling: run a share of the steps on a smaller latent."""
