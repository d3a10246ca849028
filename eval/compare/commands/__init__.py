"""The commands ``hasten demo``, ``hasten compare`` and ``hasten eval``."""
