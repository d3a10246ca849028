"""Runs of tiny pipelines, for one process and for several."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from clip_pipelines import PIPELINES, pixels
from clip_reference import pixel_frames
from families import FAMILIES, baseline

import hasten


def build(family: str, scheduler: str | None = None) -> Any:
    """A tiny pipeline, optionally with another scheduler."""
    import diffusers

    pipe = PIPELINES[family]() if family in PIPELINES else FAMILIES[family]()
    if scheduler is not None:
        options = {"algorithm_type": "sde-dpmsolver++"} if scheduler.startswith("DPMSolver") else {}
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **options)
    return pipe


def call(family: str, frames: int, **more: Any) -> dict[str, Any]:
    """Arguments of a cheap call that makes ``frames`` temporal patches, nearly always latent frames."""
    length = pixels(family, frames) if family in PIPELINES else {"num_frames": pixel_frames(family, frames)}
    return {**length, "num_inference_steps": 2, **more}


def spoken(pipe: Any, prompt: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands in for tokenizer and text encoder: embeddings that depend on the text, and those of no text."""
    text = prompt if isinstance(prompt, str) else prompt[0]
    numbers = [torch.Generator().manual_seed(sum(map(ord, word))) for word in (text, "nothing")]
    one, other = (torch.randn(1, 7, 24, generator=number) for number in numbers)
    return one, other


def run(case: dict[str, Any]) -> torch.Tensor:
    """Latents of one case: family, frames, options of the technique (none: the stock pipeline)."""
    pipe = build(case["family"], case.get("scheduler"))
    arguments = call(case["family"], case["frames"], **case.get("call", {}))
    if "prompt" in arguments:
        arguments |= {"prompt_embeds": None, "negative_prompt_embeds": None}
        pipe.encode_prompt = partial(spoken, pipe)
    if case.get("options") is None:
        return baseline(pipe, case["family"], **arguments)
    with hasten.accelerate(pipe, {"video_infinity": case["options"]}) as acceleration:
        latents = baseline(pipe, case["family"], **arguments)
        facts = [step.facts.get("video_infinity") for step in acceleration.report().steps]
    case["facts"] = facts
    return latents
