"""Options, checks, prompts along the time line, and company."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_cases import build, call, run, spoken
from families import FAMILIES, baseline, seeded
from torch import nn

import hasten
from hasten import ConfigError, ConflictError, UnsupportedError


def accelerated(family: str, options: dict[str, Any], frames: int = 7, **arguments: Any) -> torch.Tensor:
    pipe = build(family)
    with hasten.accelerate(pipe, {"video_infinity": options}):
        return baseline(pipe, family, **call(family, frames, **arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": 2, "clip_frames": 3}, "clips and clip_frames exclude each other"),
        ({"mode": "full", "halo": 3}, "halo has no effect with mode='full'"),
        ({"mode": "full", "rope": "dual"}, "rope='dual' is not what the stock pipeline computes"),
        ({"mode": "dual_block"}, "mode='dual_block' depends on the clips"),
        ({"prompts": ["a", "b"]}, "depends on the clips"),
        ({"hallo": 3}, "unknown option 'hallo'.*did you mean 'halo'"),
        ({"halo": -1}, "halo"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hasten.Config.of({"video_infinity": options})


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"clips": 9}, {}, "clips=9 is more than the video's 7 latent frames; use at most 7 clips"),
        ({"clips": 3, "halo": 3}, {}, "halo=3 is longer than the shortest of 3 clips, 2 frames"),
        ({"halo": 1, "global_sampling": [1, 9]}, {}, "global frame 9 does not exist among 7"),
        ({}, {"num_frames": 24}, "num_frames=24 cannot be made.*use 21 or 25"),
        ({"cfg_ranks": 2}, {}, "cfg_ranks=2 needs processes: start with torchrun"),
    ],
)
def test_calls_that_are_refused(options: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accelerated("wan", options, **arguments)


@pytest.mark.parametrize(
    ("family", "own", "other"),
    [
        ("wan", {"bias": 3.0, "switch": 1.0}, {"bias": 10.0, "switch": 0.836}),
        ("text-to-video", {"bias": 10.0, "switch": 0.836}, {"bias": 3.0, "switch": 1.0}),
    ],
)
def test_the_favoured_scope_goes_by_the_kind_of_model(
    family: str, own: dict[str, float], other: dict[str, float]
) -> None:
    options = {"halo": 1, "global_frames": 3, "clips": 2}
    chosen = accelerated(family, options)
    torch.testing.assert_close(chosen, accelerated(family, {**options, **own}), rtol=0, atol=0)
    assert not torch.allclose(chosen, accelerated(family, {**options, **other}), atol=1e-4)


@pytest.mark.parametrize(("family", "count"), [("wan", 2), ("text-to-video", 4), ("animatediff", 4)])
def test_a_window_is_as_long_as_this_very_model_was_trained_with(family: str, count: int) -> None:
    # Without a bias global frames count in every step.
    options = {"trained_frames": 4, "clips": 2, "bias": 0.0}
    short = accelerated(family, options)
    told = accelerated(family, {**options, "halo": 2, "global_frames": count})
    torch.testing.assert_close(short, told, rtol=0, atol=0)
    for other in ({"halo": 1, "global_frames": count}, {"halo": 2, "global_frames": count - 1}):
        assert not torch.allclose(short, accelerated(family, {**options, **other}), atol=1e-4)


def test_full_mode_has_the_stock_limits() -> None:
    with pytest.raises(UnsupportedError, match="16 latent frames are more than the 12 positions"):
        accelerated("animatediff", {"mode": "full"}, 16)
    assert accelerated("animatediff", {"halo": 2, "global_frames": 3}, 16).shape[2] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halo": 6, "clips": 2}, r"halo=6 reaches beyond the 12 positions .* use 5 or less"),
        (
            {"halo": 2, "token_scale": True, "trained_frames": 4},
            r"token_scale has no effect on more frames \(16\)",
        ),
    ],
)
def test_what_positions_anchored_anew_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accelerated("animatediff", options, 16)


def test_a_given_picture_is_refused_where_its_tokens_are_stepped_apart() -> None:
    with pytest.raises(UnsupportedError, match="the tokens of its given picture are stepped apart"):
        accelerated("ltx-i2v", {"clips": 2})


def test_unknown_modules_are_refused() -> None:
    pipe = build("text-to-video")
    pipe.unet.register_module("extra", nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)))
    with pytest.raises(UnsupportedError, match=r"unet\.extra may mix frames.*does not know it"):
        hasten.accelerate(pipe, ["video_infinity"])
    wan = build("wan")
    wan.transformer.register_module("more", FAMILIES["wan"]().transformer.blocks[0].attn1)
    with pytest.raises(UnsupportedError, match=r"transformer\.more may mix frames"):
        hasten.accelerate(wan, ["video_infinity"])
    with pytest.raises(UnsupportedError, match="no FrameMixing"):
        hasten.accelerate(FAMILIES["flux"](), ["video_infinity"])


def test_schedulers_that_need_the_whole_sample_are_refused() -> None:
    pipe = build("text-to-video", "DPMSolverMultistepScheduler")
    pipe.scheduler.register_to_config(thresholding=True)
    with pytest.raises(UnsupportedError, match="thresholding=True needs a quantile of the whole sample"):
        hasten.accelerate(pipe, ["video_infinity"])
    with pytest.raises(UnsupportedError, match="guidance_rescale needs statistics of the whole video"):
        accelerated("ltx", {"halo": 1}, guidance_rescale=0.5)


def test_given_latents_are_divided() -> None:
    pipe = build("wan")
    latents = torch.randn(1, 4, 7, 8, 12)
    stock = baseline(pipe, "wan", **call("wan", 7, latents=latents))
    with hasten.accelerate(pipe, {"video_infinity": {"mode": "full", "clips": 3}}):
        assert torch.equal(baseline(pipe, "wan", **call("wan", 7, latents=latents)), stock)


def test_without_a_generator_the_noise_is_new_every_time() -> None:
    pipe = build("wan")
    given = {**seeded("wan"), **call("wan", 7), "generator": None, "return_dict": False}
    with hasten.accelerate(pipe, {"video_infinity": {"mode": "full", "clips": 3}}):
        assert not torch.equal(pipe(**given)[0], pipe(**given)[0])


@pytest.mark.parametrize("order", [["bottleneck", "video_infinity"]])
def test_bottleneck_sampling_outside(order: list[str]) -> None:
    """Forwards at a lower resolution are divided like any other."""
    options: dict[str, dict[str, Any]] = {
        "bottleneck": {"high_first": 0.95, "low_until": 0.5, "min_pixels": 1},
        "video_infinity": {"mode": "full", "clips": 3},
    }
    pipe = build("wan")
    arguments = call("wan", 7, num_inference_steps=4)
    with hasten.accelerate(pipe, {"bottleneck": options["bottleneck"]}) as acceleration:
        alone = baseline(pipe, "wan", **arguments)
        sizes = {step.resolution for step in acceleration.report().steps}
    assert len(sizes) == 2
    with hasten.accelerate(pipe, {name: options[name] for name in order}):
        both = baseline(pipe, "wan", **arguments)
    assert float((both - alone).abs().max()) < 1e-5 * float(alone.abs().max())


def test_techniques_that_cannot_share() -> None:
    stages = [{"steps": 3}, {"steps": 3, "scale": 0.5, "strength": 0.6}, {"steps": 3, "strength": 0.6}]
    with pytest.raises(
        ConflictError,
        match=r"'bottleneck' changes slot 'steps.schedule'.*'video_infinity' needs it unchanged",
    ):
        hasten.plan(build("wan"), {"bottleneck": {"mode": "restart", "stages": stages}, "video_infinity": {}})


@pytest.mark.parametrize("family", ["wan", "animatediff"])
def test_prompts_along_the_time_line(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build(family)
    monkeypatch.setattr(type(pipe), "encode_prompt", spoken)
    arguments = {**seeded(family), **call(family, 8), "return_dict": False}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        arguments.pop(name)

    def video(prompt: str, **options: Any) -> torch.Tensor:
        given = {**arguments, "prompt": prompt, "generator": torch.Generator().manual_seed(0)}
        base = {"clips": 4, "halo": 0, "global_frames": 0, "norm_sync": False, "conv_sync": False}
        with hasten.accelerate(pipe, {"video_infinity": {**base, **options}}):
            result: torch.Tensor = pipe(**given)[0]
        return result

    day, night = video("day"), video("night")
    both = video("ignored", prompts=["day", "night"])
    # Without any context between frames, each half is what its own prompt gives.
    assert torch.equal(both[:, :, :4], day[:, :, :4])
    assert torch.equal(both[:, :, 4:], night[:, :, 4:])
    assert not torch.equal(day, night)
    with pytest.raises(ConfigError, match=r"5 prompts share 4 clips, .* set clips=5 or more"):
        video("ignored", prompts=list("abcde"))


def test_positions_are_squeezed_where_the_video_is_longer_than_training() -> None:
    options = {"halo": 2, "global_frames": 4, "clips": 2, "bias": 0.0}
    short = [{"trained_frames": 7, "rope": rope} for rope in ("dual", "absolute")]
    long = [{"trained_frames": 3, "rope": rope} for rope in ("dual", "absolute")]
    same = [run({"family": "wan", "frames": 7, "options": {**options, **one}}) for one in short]
    other = [run({"family": "wan", "frames": 7, "options": {**options, **one}}) for one in long]
    assert torch.equal(*same)
    assert torch.equal(same[1], other[1])
    assert float((other[0] - other[1]).abs().max()) > 1e-4


def test_a_solver_of_few_steps_is_kept_though_it_shares_memory(tmp_path: Path) -> None:
    from diffusers import UniPCMultistepScheduler

    # Of so few steps the solver's own timesteps are in the checkpoint, and a view of one of them.
    options = {"clips": 2, "halo": 1, "global_frames": 1, "checkpoint": str(tmp_path), "checkpoint_every": 1}

    def made() -> torch.Tensor:
        pipe = build("wan")
        pipe.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        with hasten.accelerate(pipe, {"video_infinity": options}):
            return baseline(pipe, "wan", **call("wan", 7, num_inference_steps=4))

    first = made()
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "step-00003", "step-00004"}
    shutil.rmtree(tmp_path / "step-00004")
    torch.testing.assert_close(made(), first, rtol=0, atol=0)
