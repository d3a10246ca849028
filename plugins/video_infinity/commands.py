"""The command ``hasten video``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as options
from hasten.extend import Pipeline

if TYPE_CHECKING:
    from hasten.commands import Config
    from hasten.plugins.video_infinity.long_video import LongVideo

__all__ = ["add_commands"]

_HELP = """Make a long video on one or several processes.

The video is written while it is decoded. With [bold]--checkpoint[/], the same command resumes an interrupted run, also
with fewer processes. Several prompts share the time line in equal parts.

[bold]Examples[/]

  hasten video ./my-wan --prompt "a lighthouse in a storm" --frames 321 --out storm.mp4
  torchrun --nproc-per-node 8 --no-python hasten video ./my-wan -p "a lighthouse" --frames 2305 --out storm.mp4
"""


_LOGGED = 10.0
"""Seconds between two progress lines in a log."""

_Out = Annotated[
    Path | None,
    typer.Option(
        help="A file ending in .mp4, .mov or .mkv (default video.mp4), or a folder of PNG files (no suffix)."
    ),
]
_Rate = Annotated[str, typer.Option(help="Frames per second: a number, or a fraction such as 24000/1001.")]
_Codec = Annotated[str, typer.Option(help="FFmpeg's name of the encoder.")]
_Checkpoint = Annotated[Path | None, typer.Option(help="Folder of checkpoints, for resuming.")]


def add_commands(app: typer.Typer) -> None:
    """Add ``video`` to the command line ``app``."""
    app.command("video", help=_HELP)(_video)


def _video(
    context: typer.Context,
    model: options.ModelName = None,
    prompt: options.Prompt = None,
    frames: options.Frames = None,
    out: _Out = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    height: options.Height = None,
    width: options.Width = None,
    guidance_scale: options.Guidance = None,
    fps: _Rate = "8",
    codec: _Codec = "libx264",
    checkpoint: _Checkpoint = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    sets: options.Set = None,
    config: options.ConfigFile = None,
    as_json: options.Json = False,
) -> None:
    import torch

    from hasten.commands import hold_file, hold_folder, load_quietly
    from hasten.plugins.video_infinity.long_video import write_video
    from hasten.plugins.video_infinity.video_file import Encoding, check_output

    settings = options.configuration(config, ["video_infinity"], sets)
    name = options.choose_model(model, settings)
    encoding = Encoding(_rate(fps), codec)
    out = out or Path(settings.out or "video.mp4")
    check_output(out, codec)
    hold_file(context, out)
    seed, place = options.choose_seed(settings, seed), options.choose_place(settings, device, dtype)
    limit = None if prompt or settings.prompts else 1  # one of a miniature's own
    texts = options.choose_prompts(name, settings, prompt, None, limit, seed)
    call = options.call_arguments(
        name,
        settings,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance_scale=guidance_scale,
    )
    techniques, own = _techniques(settings, texts, checkpoint)
    if own.get("checkpoint") is not None:
        hold_folder(context, own["checkpoint"], "--checkpoint")
    pipe = load_quietly(name, place, call, settings.solver)
    call |= {"prompt": texts[0], "generator": torch.Generator().manual_seed(seed)}
    with _progress(pipe, quiet=as_json) as tell:
        video = write_video(pipe, out, call, own, techniques=techniques, encoding=encoding, tell=tell)
    if video.rank == 0:
        _show(video, as_json)


@contextmanager
def _progress(pipe: Pipeline, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show progress on rank 0: one changing line in a terminal, a line every ten seconds in a log."""
    from hasten.commands import Console

    console = Console(stderr=True, quiet=quiet or os.environ.get("RANK", "0") != "0")
    pipe.set_progress_bar_config(disable=console.quiet)
    status, shown = console.status(""), 0.0

    def tell(text: str) -> None:
        nonlocal shown
        if console.is_terminal:
            status.update(text)
            status.start()
        elif time.monotonic() - shown > _LOGGED:
            console.print(text, style="dim")
            shown = time.monotonic()

    try:
        yield tell
    finally:
        status.stop()


def _show(video: LongVideo, as_json: bool) -> None:
    from rich.markup import escape

    from hasten.commands import Console

    if as_json:
        typer.echo(json.dumps({**asdict(video), "path": str(video.path)}, indent=2))
        return
    processes = f"{video.world} process{'es' * (video.world > 1)}"
    Console().print(
        f"{escape(str(video.path))}: {video.frames} frames by {processes}, "
        f"denoised in {video.denoise_seconds:.1f} s, decoded in {video.decode_seconds:.1f} s"
    )


def _techniques(
    settings: Config, texts: Sequence[str], checkpoint: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the other techniques by name, and those of this one."""
    from hasten.extend import ConfigError

    listed = {e.name: e.options.model_dump(mode="json", exclude_unset=True) for e in settings.techniques}
    own = listed.pop("video_infinity")
    if checkpoint is not None:
        own["checkpoint"] = str(checkpoint)
    if own.get("data_ranks", 1) > 1:
        raise ConfigError(
            f"data_ranks={own['data_ranks']} makes several videos at a time, and hasten video makes one: set it to 1, "
            "or use hasten generate"
        )
    if len(texts) > 1:
        own["prompts"] = list(texts)
        if not {"clips", "clip_frames"} & set(own):
            own["clips"] = len(texts)
    return listed, own


def _rate(text: str) -> Fraction:
    from hasten.extend import ConfigError

    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--fps {text} is no number, and no fraction such as 24000/1001") from error
    if rate <= 0:
        raise ConfigError(f"--fps {text} is not positive")
    return rate
