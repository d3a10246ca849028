"""Miniature models for ``hasten``: small trained pipelines, their data sets, and the trainer that made them."""
