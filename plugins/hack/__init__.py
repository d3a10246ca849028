"""HACK: head-aware compression of the key-value cache of next-scale generation (arXiv 2504.09261)."""
