"""Imported once by the server that ranks are forked from."""

import diffusers

for _name in (
    "TextToVideoSDPipeline",
    "AnimateDiffPipeline",
    "WanPipeline",
    "CogVideoXPipeline",
    "LTXPipeline",
):
    getattr(diffusers, _name)
