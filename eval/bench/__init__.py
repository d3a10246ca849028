"""``hasten bench``: timings of parts of hasten on your machine, each beside its plain alternative."""
