"""``hasten bench``: measurements of single parts, next to the plain way in the same run."""
