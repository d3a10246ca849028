"""Miniatures: small trained pipelines in stock diffusers classes, for trying and testing ``hasten`` without a GPU.

``hasten.load("mini/t2i-dit")`` loads one. Quality figures on miniatures show trends; they are not comparable with
published figures of any kind. The other miniatures and the trainer are the distribution ``hasten-miniatures``.
"""

from hasten.pipelines.mini._models import (
    captions,
    load,
    load_folder,
    names,
    path,
    product_name,
    prompts,
    recommended_call,
)

__all__ = ["captions", "load", "load_folder", "names", "path", "product_name", "prompts", "recommended_call"]
