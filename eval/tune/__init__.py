"""The fastest settings that lose no more than a margin: a search, and a confirmation on prompts it never saw."""
