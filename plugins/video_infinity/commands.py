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

if TYPE_CHECKING:
    from hasten.commands import Console
    from hasten.plugins.video_infinity.film import Filmed

__all__ = ["add_commands"]

_HELP = """Make a long video, on one process or on many.

The video is written while it is decoded. With [bold]--checkpoint[/], the same command goes on where a run ended, also
with fewer processes. Several prompts take equal parts of the time line.

[bold]Examples[/]

  hasten video ./my-wan --prompt "a lighthouse in a storm" --frames 321 --out storm.mp4
  torchrun --nproc-per-node 8 --no-python hasten video ./my-wan -p "a lighthouse" --frames 2305 --out storm.mp4
"""


_LOGGED = 10.0
"""Seconds between two lines of progress in a log."""

_Out = Annotated[
    Path | None,
    typer.Option(
        help="A file ending in .mp4, .mov or .mkv (default video.mp4); without an ending, a folder of PNGs."
    ),
]
_Rate = Annotated[str, typer.Option(help="Frames per second: a number or a fraction like 24000/1001.")]
_Codec = Annotated[str, typer.Option(help="Encoder, by FFmpeg's name.")]
_Checkpoint = Annotated[Path | None, typer.Option(help="Folder for resuming.")]


def add_commands(app: Any) -> None:
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
    from hasten.commands import hold_file, hold_folder, load_quietly
    from hasten.plugins.video_infinity.encode import check_output

    settings = options.configuration(config, ["video_infinity"], sets)
    name = options.choose_model(model, settings)
    out = out or Path(settings.out or "video.mp4")
    check_output(out, codec)
    hold_file(context, out)
    seed, place = options.choose_seed(settings, seed), options.choose_place(settings, device, dtype)
    limit = None if prompt or settings.prompts else 1  # one of a miniature's own
    texts = options.choose_prompts(name, settings, prompt, None, limit, seed)
    given = {
        "num_inference_steps": steps,
        "height": height,
        "width": width,
        "guidance_scale": guidance_scale,
        "num_frames": frames,
    }
    call = options.call_arguments(name, settings, given)
    techniques, own = _techniques(settings, texts, checkpoint)
    if own.get("checkpoint") is not None:
        hold_folder(context, own["checkpoint"], "--checkpoint")
    pipe = load_quietly(name, place, call)
    filmed = _film(pipe, out, {**call, "prompt": texts[0]}, own, techniques, seed, _rate(fps), codec, as_json)
    if filmed.rank == 0:
        _show(filmed, as_json)


def _film(
    pipe: Any,
    out: Path,
    call: dict[str, Any],
    own: dict[str, Any],
    techniques: dict[str, Any],
    seed: int,
    rate: Fraction,
    codec: str,
    quiet: bool,
) -> Filmed:
    """Make the video, the first process telling how far it is."""
    import torch

    from hasten.commands import Console
    from hasten.plugins.video_infinity.film import write_video

    console = Console(stderr=True, quiet=quiet or os.environ.get("RANK", "0") != "0")
    pipe.set_progress_bar_config(disable=console.quiet)
    call["generator"] = torch.Generator().manual_seed(seed)
    with _telling(console) as tell:
        return write_video(pipe, out, call, own, techniques=techniques, fps=rate, codec=codec, tell=tell)


@contextmanager
def _telling(console: Console) -> Iterator[Callable[[str], None]]:
    """Shows what it is told in one line that changes; in a log, a line every ten seconds."""
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


def _show(filmed: Filmed, as_json: bool) -> None:
    from rich.markup import escape

    from hasten.commands import Console

    if as_json:
        typer.echo(json.dumps({**asdict(filmed), "path": str(filmed.path)}, indent=2))
        return
    processes = f"{filmed.world} process{'es' * (filmed.world > 1)}"
    Console().print(
        f"{escape(str(filmed.path))}: {filmed.frames} frames by {processes}, "
        f"denoised in {filmed.denoise_seconds:.1f} s, decoded in {filmed.decode_seconds:.1f} s"
    )


def _techniques(
    settings: Any, texts: Sequence[str], checkpoint: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the other techniques, and of this one."""
    listed = {e.name: e.options.model_dump(mode="json", exclude_unset=True) for e in settings.techniques}
    own = listed.pop("video_infinity")
    if checkpoint is not None:
        own["checkpoint"] = str(checkpoint)
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
        raise ConfigError(f"--fps {text} is no number and no fraction like 24000/1001") from error
    if rate <= 0:
        raise ConfigError(f"--fps {text} must be positive")
    return rate
