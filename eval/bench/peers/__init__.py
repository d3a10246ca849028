"""``hasten bench peers``: other packages that make a pipeline faster, beside plain sampling and hasten, in one run."""
