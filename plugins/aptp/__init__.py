"""APTP: a router picks, prompt by prompt, one of several physically pruned denoisers."""
