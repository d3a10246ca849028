"""Runs of tiny pipelines, for one process and for several."""

from __future__ import annotations

from typing import Any

import torch
from clip_reference import pixel_frames
from families import FAMILIES, baseline

import hasten


def build(family: str, scheduler: str | None = None) -> Any:
    """A tiny pipeline, optionally with another scheduler."""
    import diffusers

    pipe = FAMILIES[family]()
    if scheduler is not None:
        options = {"algorithm_type": "sde-dpmsolver++"} if scheduler.startswith("DPMSolver") else {}
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **options)
    return pipe


def call(family: str, frames: int, **more: Any) -> dict[str, Any]:
    """Arguments of a cheap call that makes ``frames`` latent frames."""
    return {"num_frames": pixel_frames(family, frames), "num_inference_steps": 2, **more}


def run(case: dict[str, Any]) -> torch.Tensor:
    """Latents of one case: family, frames, options of the technique (none: the stock pipeline)."""
    pipe = build(case["family"], case.get("scheduler"))
    arguments = call(case["family"], case["frames"], **case.get("call", {}))
    if case.get("options") is None:
        return baseline(pipe, case["family"], **arguments)
    with hasten.accelerate(pipe, {"video_infinity": case["options"]}) as acceleration:
        latents = baseline(pipe, case["family"], **arguments)
        facts = [step.facts.get("video_infinity") for step in acceleration.report().steps]
    case["facts"] = facts
    return latents
