"""Quality over time: plain sampling's curve over steps and solvers, and each technique's over its own dial."""
