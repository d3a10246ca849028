"""Miniature models: small, really trained pipelines in stock diffusers classes, their data set and their trainer.

``hasten.load("mini/t2i-dit")`` loads one. Quality figures on miniatures show trends; they are not comparable with
published figures of any kind.
"""

from hasten.pipelines.mini._models import load, names, path, prompts, recommended_call

__all__ = ["load", "names", "path", "prompts", "recommended_call"]
