"""Earlier place of the miniatures' metrics, kept for scripts until 1.0; use :mod:`hasten.eval.metrics.miniature`."""

from hasten.eval.metrics.miniature import RENDERS_PER_PROMPT, true_renders

__all__ = ["RENDERS_PER_PROMPT", "true_renders"]
