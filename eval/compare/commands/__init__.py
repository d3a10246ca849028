"""The commands ``hasten compare`` and ``hasten eval``."""
